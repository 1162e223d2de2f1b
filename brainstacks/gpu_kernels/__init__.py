"""Triton kernels of the `cuda` backend, each behind an operator of torch's: fake tensors, recorders of
operators and CUDA graphs see a launch as one operation.

They run interpreted, on CPU tensors, where `TRITON_INTERPRET=1` was set when they were imported.
"""
