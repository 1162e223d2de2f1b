"""Compiled loops for the CPU.

What numba compiles is kept between starts: in `$NUMBA_CACHE_DIR` where that is set, else in the user's cache
directory, else, where nothing can be written (a read-only container), for this process alone.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numba


def _compiled_directory() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    directory = cache / "brainstacks" / "numba"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="brainstacks-"))
    return directory if os.access(directory, os.W_OK) else Path(tempfile.mkdtemp(prefix="brainstacks-"))


if not numba.config.CACHE_DIR:
    numba.config.CACHE_DIR = str(_compiled_directory())
