"""Compiled code is kept where it can be, and its absence stops nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WHERE = "import brainstacks.kernels, numba; print(numba.config.CACHE_DIR)"


def kept_in(**environment: str) -> Path:
    found = subprocess.run(
        [sys.executable, "-c", WHERE],
        env={**os.environ, "NUMBA_CACHE_DIR": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(found.stdout.strip())


def test_compiled_code_is_kept_in_the_users_cache(tmp_path: Path) -> None:
    assert kept_in(XDG_CACHE_HOME=str(tmp_path)) == tmp_path / "brainstacks" / "numba"


def test_a_directory_that_was_chosen_is_used(tmp_path: Path) -> None:
    assert kept_in(NUMBA_CACHE_DIR=str(tmp_path)) == tmp_path


def test_where_there_is_no_cache_it_is_kept_for_the_process_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    directory = kept_in(XDG_CACHE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path))
    assert directory.parent == tmp_path
    assert directory.stat().st_mode & 0o777 == 0o700
