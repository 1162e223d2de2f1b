"""Load, faults and hostile clients against a real server process; `make soak` runs the long form of each."""
