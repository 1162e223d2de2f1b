"""An NF4 linear as bitsandbytes 0.50.2 launches it on a GPU: by its own rule, asked without one."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from unittest import mock

import torch

from benchmarks.instruments.gpu_time import Gpu, Launch

NF4 = 0.5 + 1 / 64
"""Bytes of a weight: its code, and its part of a scale of one byte for 64."""


def launches(m: int, n: int, k: int, gpu: Gpu) -> list[Launch]:
    """Of [m, k] x [n, k]^T in bfloat16: one fused product, or weights that are written as bfloat16 first."""
    weights, activations, flops = n * k, 2 * m * (n + k), 2.0 * m * n * k
    if fused(m, n, k, gpu):
        return [Launch("linears", "gemm_4bit", NF4 * weights + activations, flops)]
    scales = weights / 64
    return [
        Launch("linears", "scales", 5 * scales),  # they are quantised themselves
        Launch("linears", "offset", 8 * scales),
        Launch("linears", "dequantize", (NF4 + 2) * weights),
        Launch("linears", "linear", 2 * weights + activations, flops),
    ]


def fused(m: int, n: int, k: int, gpu: Gpu) -> bool:
    """Whether bitsandbytes would have its fused kernel compute it."""
    ops = _ops()
    with mock.patch.object(ops, "_gpu_dispatch_props", return_value=(gpu.processors, *gpu.capability)):
        rule = ops._gemm_4bit_use_custom_cuda.__wrapped__  # without its cache, which knows no GPU but one
        return m <= ops._gemm_4bit_custom_max_m and bool(rule(0, torch.bfloat16, m, n, k))


@cache
def _ops() -> ModuleType:
    """Its module for CUDA, which names at import what a build of torch for CPUs lacks."""
    with mock.patch.object(torch._C, "_cuda_getCurrentRawStream", None, create=True):
        from bitsandbytes.backends.cuda import ops
    found: ModuleType = ops
    return found
