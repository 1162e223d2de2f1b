"""Compiled code is kept where it can be, and its absence stops nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import brainstacks

SOURCES = Path(brainstacks.__file__).parent
WHERE = "import brainstacks.kernels, numba; print(numba.config.CACHE_DIR)"


def kept_in(directory: Path | None = None, **environment: str) -> Path:
    found = subprocess.run(
        [sys.executable, "-c", WHERE],
        env={**os.environ, "NUMBA_CACHE_DIR": "", **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(found.stdout.strip())


def test_compiled_code_is_kept_in_the_users_cache(tmp_path: Path) -> None:
    assert kept_in(XDG_CACHE_HOME=str(tmp_path)).parent == tmp_path / "brainstacks" / "numba"


def test_each_state_of_the_sources_has_a_directory_of_its_own(tmp_path: Path) -> None:
    """numba looks at a function's own file alone, and keeps what was compiled from the others before."""
    copy = tmp_path / "brainstacks"  # in the working directory, which comes first
    for name in ("__init__.py", "cpu.py", "errors.py", "kernels/__init__.py", "kernels/numbers.py"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text((SOURCES / name).read_text() if name != "__init__.py" else "")
    before = kept_in(tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert kept_in(tmp_path, XDG_CACHE_HOME=str(tmp_path)) == before
    with (copy / "kernels" / "numbers.py").open("a") as file:
        file.write("# changed\n")
    assert kept_in(tmp_path, XDG_CACHE_HOME=str(tmp_path)) != before


def test_a_directory_that_was_chosen_is_used(tmp_path: Path) -> None:
    assert kept_in(NUMBA_CACHE_DIR=str(tmp_path)) == tmp_path


def test_where_there_is_no_cache_it_is_kept_for_the_process_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    directory = kept_in(XDG_CACHE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path))
    assert directory.parent == tmp_path
    assert directory.stat().st_mode & 0o777 == 0o700


BITS = """
import hashlib, sys
from pathlib import Path
from tests.engine.stepped import LENGTHS, MIX, Stepped
from tests.engine.driving import prompt_of

found = Stepped(Path(sys.argv[1]), "cpu").logits([prompt_of(n) for n in LENGTHS], MIX)
print(hashlib.sha256(b"".join(part.numpy().tobytes() for part in found)).hexdigest())
"""


@pytest.mark.slow
def test_the_process_that_compiles_computes_the_same_bits_as_those_that_follow(tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    bits = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        found = subprocess.run(
            [sys.executable, "-c", BITS, str(tmp_path / str(number))],
            env={**os.environ, "NUMBA_CACHE_DIR": str(compiled)},
            capture_output=True,
            text=True,
            check=True,
        )
        bits.append(found.stdout.split()[-1])
    assert any(compiled.rglob("*.nbc"))
    assert bits[0] == bits[1]
