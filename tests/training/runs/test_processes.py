"""`training.runs.processes`: one does all of it, two share it, and nobody waits for what never comes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from torch import nn

from brainstacks.errors import ConfigError
from training.runs import processes
from training.runs.launch import Launch
from training.runs.processes import ALONE, meeting


def test_one_process_does_all_of_it_and_talks_to_nobody() -> None:
    assert not torch.distributed.is_initialized()
    assert ALONE.is_first
    assert ALONE.first(lambda: 3) == 3
    assert ALONE.gathered(lambda: 3) == [3]
    assert ALONE.shared([1, 2, 3], lambda n: n * n, "squares", "numbers") == [1, 4, 9]
    assert ALONE.summed(torch.tensor(1.1, dtype=torch.float64), True, 2.5) == [1.1, 1.0, 2.5]
    assert ALONE.summed(False) == [0.0]
    parameter = nn.Parameter(torch.zeros(2))
    ALONE.add_gradients([parameter])
    assert parameter.grad is None, "and a parameter without a gradient keeps none"
    ALONE.check_same("data", 1)
    told = list[str]()
    ALONE.reporting(told.append)("a line")
    assert told == ["a line"]
    with meeting(torch.device("cpu"), None) as found:
        assert found == ALONE


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_who_waits_for_others_that_do_not_come_is_told_where_they_were_to_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "PATIENCE", timedelta(seconds=1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port := free_port())
    with (
        pytest.raises(
            ConfigError, match=f"the 2 processes .* did not meet at 127.0.0.1:{port}: .* unset WORLD_SIZE"
        ),
        meeting(torch.device("cpu"), Launch(rank=1, local_rank=1, count=2)),
    ):
        pass


@pytest.mark.slow
def test_two_processes_share_sum_and_fail_together() -> None:
    together = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.two_processes"],
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()
            process.communicate()
