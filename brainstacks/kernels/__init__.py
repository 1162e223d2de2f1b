"""Compiled loops for the CPU.

What numba compiles is kept between starts: in `$NUMBA_CACHE_DIR` where that is set, else in the user's cache
directory, else, where nothing can be written (a read-only container), for this process alone. numba looks
at a function's own file alone to see whether what it kept is still true, so each state of these files
together has a directory of its own.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import partial
from pathlib import Path

import numba


def _compiled_directory() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    directory = cache / "brainstacks" / "numba" / _state()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="brainstacks-"))
    return directory if os.access(directory, os.W_OK) else Path(tempfile.mkdtemp(prefix="brainstacks-"))


def _state() -> str:
    """Names this version of the sources and of numba."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if not numba.config.CACHE_DIR:
    numba.config.CACHE_DIR = str(_compiled_directory())

internal = partial(numba.njit, cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""`njit` for what compiled code alone calls, as Python must not: without the wrappers for Python and C, which
take a third of the compiling."""

summing = partial(internal, fastmath={"contract", "reassoc", "nsz"}, forceinline=True)
"""`internal` for sums that become vectors, in an order that the compiler chooses. They are part of what calls
them: a function of its own would be compiled twice, with two orders, one of them in the process that compiles
and the other in those that find it on disk."""
