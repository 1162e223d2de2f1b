"""What starts a server or drives an engine, what it is asked, and what came back."""
