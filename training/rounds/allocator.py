"""glibc's allocator, for training on a CPU; where the C library is another one, nothing happens here."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # numbers of mallopt's parameters in <malloc.h>


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, until `return_freed_memory`.

    Every step allocates the same activations again. By default glibc returns large blocks to the system at
    once, and the next step pays for each of their pages with a fault.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return to the system what is free by now: kept for ever, blocks of many sizes would spread out."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
