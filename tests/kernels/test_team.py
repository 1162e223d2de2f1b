"""Compiled loops run on torch's OpenMP team, or on the calling thread where there is none."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import carray, cfunc, njit, types

from brainstacks.kernels import team

MAPS = Path("/proc/self/maps")
has_team = pytest.mark.skipif(team.parallel_address() == 0, reason="torch brings no libgomp here")


def owner(address: int) -> Path:
    """The file that is mapped at `address`."""
    for line in MAPS.read_text().splitlines():
        low, _, high = line.split()[0].partition("-")
        if int(low, 16) <= address < int(high, 16):
            return Path(line.split(maxsplit=5)[5])
    raise ValueError(f"nothing is mapped at {address:#x}")


@has_team
def test_torchs_libgomp_is_taken_whichever_others_are_loaded(tmp_path: Path) -> None:
    own = owner(team.parallel_address())
    assert own.is_relative_to(Path(torch.__file__).resolve().parent.parent)
    for name in ("a.libs/libgomp-1.so.1", "z.libs/libgomp.so.1"):
        other = tmp_path / name
        other.parent.mkdir()
        shutil.copy(own, other)
        ctypes.CDLL(str(other))
        assert str(other) in MAPS.read_text()
    assert team.parallel_address.__wrapped__() == team.parallel_address()


@has_team
def test_a_libgomp_of_another_package_is_not_taken_for_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    assert team.parallel_address.__wrapped__() == 0


def test_a_system_that_does_not_list_its_libraries_has_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "Path", lambda _: Path("/nowhere/maps"))
    assert team.parallel_address.__wrapped__() == 0


ITEMS = 1000


def _body(call: Any) -> None:
    """call: [1 + 1 + ITEMS] int64: next item, calls of this function, times that each item was done."""
    memory = carray(call, (2 + ITEMS,))
    team.claim(memory.ctypes.data + 8)
    while True:
        item = team.claim(memory.ctypes.data)
        if item >= ITEMS:
            return
        memory[2 + item] += 1


def _run(parallel: Any, body: Any, memory: Any, threads: Any) -> None:
    team.run_parallel(parallel, body, memory.ctypes.data, threads)


body, run = cfunc(types.void(types.CPointer(types.int64)))(_body), njit(_run)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("with_team", [pytest.param(True, marks=has_team), False])
def test_every_item_is_done_once_by_as_many_threads_as_asked_for(threads: int, with_team: bool) -> None:
    memory = np.zeros(2 + ITEMS, np.int64)
    run(team.parallel_address() if with_team else 0, body.address, memory, threads)
    assert memory[1] == (threads if with_team else 1)
    assert (memory[2:] == 1).all()
