"""What `benchmarks.gpu` finds out on a GPU, section by section."""
