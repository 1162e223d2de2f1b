"""The device that a base is on: its name, what it is, its memory, and whether it still computes."""

from __future__ import annotations

import os
import re
import traceback
from dataclasses import dataclass

import torch

from brainstacks.config import DEVICE_NAMES
from brainstacks.cpu import cpu
from brainstacks.errors import ConfigError

FIRST_WITH_BFLOAT16 = (8, 0)
"""Compute capability. PyTorch has bfloat16 on every GPU; older ones emulate it, many times slower."""


@dataclass(frozen=True)
class Gpu:
    """Attributes:
    name: for people.
    capability: CUDA's compute capability, major and minor.
    nbytes: of its memory, used or not.
    """

    name: str
    capability: tuple[int, int]
    nbytes: int

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name} (compute capability {major}.{minor}, {self.nbytes / 2**30:.0f} GiB)"


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`; a CUDA device comes with its number.

    Raises:
        ConfigError: it is none of these, or is not there.
    """
    if not re.fullmatch(DEVICE_NAMES, name):
        raise ConfigError(
            f"device is {name!r}; it is auto, cpu, cuda, or one of several, such as cuda:1", param="device"
        )
    there = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise ConfigError(
            f"device is {name}, and no CUDA device is available; use --device cpu", param="device"
        )
    count, number = torch.cuda.device_count(), name.partition(":")[2]
    if number and int(number) >= count:
        raise ConfigError(
            f"device is {name}, and CUDA devices here: {count}; the last is cuda:{count - 1}", param="device"
        )
    return torch.device("cuda", int(number) if number else torch.cuda.current_device())


def use(device: torch.device) -> None:
    """Make a CUDA device that of the calling thread: Triton launches there, wherever its tensors are."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def gpu(device: torch.device | None = None) -> Gpu | None:
    """What `device` is, or the calling thread's; None for a CPU."""
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        return None
    found = torch.cuda.get_device_properties(device)
    return Gpu(found.name, (found.major, found.minor), found.total_memory)


def processor(device: torch.device) -> str:
    """What computes there, for people."""
    return str(gpu(device) or cpu())


def half(device: torch.device) -> torch.dtype:
    """The 16-bit dtype that it computes in itself: bfloat16, or float16 on a GPU that emulates it."""
    found = gpu(device)
    old = found is not None and found.capability < FIRST_WITH_BFLOAT16
    return torch.float16 if old else torch.bfloat16


def free_bytes(device: torch.device) -> int:
    """Of its memory, what nobody uses now; what PyTorch keeps for later is given back first."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says so, of the host or of a device; a library's own error says it in its words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error)


def reclaim(error: BaseException) -> None:
    """Free what a computation held that ended with `error`, where it ran out of memory.

    A caught error keeps alive every tensor of the calls that it came through.
    """
    if is_out_of_memory(error):
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()


def is_lost(device: torch.device) -> bool:
    """Whether every further call to it fails. The fault of one kernel ends a CUDA context, and only another
    process gets a new one."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
