"""What every benchmark is made with: options, stacks, clocks, figures, tables, files of results."""
