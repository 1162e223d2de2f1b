"""The device that a command computes on, and that it computes there the same bits at every run."""

from __future__ import annotations

import os

import torch

from brainstacks.device import resolve_device
from brainstacks.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")
"""The values of `WORKSPACE` with which cuBLAS splits a product in the same way at every run."""


def take_device(name: str) -> torch.device:
    """The device that `name` (auto, cpu, cuda, cuda:N) stands for, which this process now computes on.

    Raises:
        ConfigError: there is no such device, or the environment keeps it from repeating its results.
    """
    device = resolve_device(name)
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        compute_repeatably()
    return device


def named(device: torch.device) -> str:
    """As options name it: of several processes, accelerate numbers CPUs too."""
    return "cpu" if device.type == "cpu" else str(device)


def compute_repeatably() -> None:
    """Let operations on CUDA add in one order, at some cost in time; one that cannot raises RuntimeError.

    To be called before the first product. On a CPU, sums have one order for each number of threads anyway.

    Raises:
        ConfigError: the environment asks cuBLAS for something else.
    """
    if os.environ.setdefault(WORKSPACE, FIXED[0]) not in FIXED:
        raise ConfigError(
            f"{WORKSPACE} is {os.environ[WORKSPACE]!r}, with which no run repeats its results; unset it, or "
            f"set it to {' or '.join(FIXED)}"
        )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # none is read
