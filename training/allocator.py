"""glibc's allocator, for training on a CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # numbers of mallopt's parameters in <malloc.h>


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees; does nothing where the C library is not glibc.

    Every step allocates the same activations again. By default glibc returns large blocks to the system at
    once, and the next step pays for each of their pages with a fault: a third of a step on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
