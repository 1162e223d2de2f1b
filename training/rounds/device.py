"""The device that a command computes on, that it computes there the same bits at every run, and with whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from brainstacks.device import resolve_device
from brainstacks.errors import ConfigError
from training.runs.launch import launched
from training.runs.processes import Processes, meeting

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")
"""The values of `WORKSPACE` with which cuBLAS splits a product in the same way at every run."""


@contextmanager
def joined(name: str) -> Iterator[Processes]:
    """The processes of this command, while the `with` lasts; this one is on the device that `name` stands
    for, or, of several on CUDA, on the GPU of its number on its machine.

    Raises:
        ConfigError: as `take_device`, `launched` and `meeting`; or several would share one GPU.
    """
    launch = launched()
    if launch is not None and resolve_device(name).type == "cuda":
        if ":" in name:
            raise ConfigError(
                f"device is {name}, and each of the {launch.count} processes takes a GPU of its own; leave "
                "--device out"
            )
        name = f"cuda:{launch.local_rank}"
    with meeting(take_device(name), launch) as processes:
        yield processes


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
