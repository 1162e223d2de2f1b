"""What a process keeps of the memory that it frees, and gives back when asked."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from training.rounds.allocator import keep_freed_memory, return_freed_memory

BLOCKS, BYTES = 64, 4 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(answers: Connection) -> None:
    before = resident()
    keep_freed_memory()
    blocks = [torch.ones(BYTES // 4) for _ in range(BLOCKS)]
    held = resident() - before
    del blocks
    kept = resident() - before
    return_freed_memory()
    answers.send((held, kept, resident() - before))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(there,))
    child.start()
    held, kept, left = here.recv()
    child.join()
    assert held > 0.9 * BLOCKS * BYTES
    assert kept > 0.9 * held
    assert left < 0.2 * held
