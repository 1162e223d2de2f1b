"""Routers of adapters, ours and others', over the stacks of one registry; `__main__` is the command."""
