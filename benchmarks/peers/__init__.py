"""Other people's programs, and the published scheme: what the engine and the trainer are compared with."""
