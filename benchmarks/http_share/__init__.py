"""What HTTP in the engine's own interpreter costs a step: the parts of `python -m benchmarks.http_share`."""
