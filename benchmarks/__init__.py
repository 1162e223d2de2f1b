"""Benchmarks: the modules here are commands; what they share is in rooms, which know only the instruments."""
