"""One of two processes that try out `training.runs.processes`: what goes wrong is a traceback."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from brainstacks.errors import ConfigError
from training.rounds.device import joined
from training.runs.processes import AnotherFailed, Processes


def fails_on(rank: int, processes: Processes) -> int:
    if processes.rank == rank:
        raise ValueError("this one")
    return processes.rank


def try_out(processes: Processes) -> None:
    rank = processes.rank
    assert processes.count == 2
    assert processes.share("abcde") == ("ace", "bd")[rank]
    assert processes.first(lambda: rank) == 0
    assert processes.gathered(lambda: rank) == [0, 1]
    done = list[str]()

    def work(letter: str) -> str:
        done.append(letter)
        return letter.upper()

    assert processes.shared("abcde", work, "letters", "letters") == list("ABCDE"), "in their order"
    assert done == list(("ace", "bd")[rank]), "each once, by one of them"
    assert processes.shared("a", work, "letters", "letters") == ["A"], "one has nothing to do"
    assert processes.shared("", work, "letters", "letters") == []
    total = torch.tensor(rank + 0.5, dtype=torch.float64)
    assert processes.summed(total, rank == 1) == [2.0, 1.0]

    both, mine, nobody = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    both.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (rank + 1)
    mine.grad = torch.ones(2, 2) if rank == 0 else None
    processes.add_gradients([both, mine, nobody])
    for parameter, expected in (
        (both, [[3.0, 6.0], [9.0, 12.0]]),
        (mine, [[1.0] * 2] * 2),
        (nobody, [[0.0] * 2] * 2),
    ):
        assert parameter.grad is not None
        assert parameter.grad.tolist() == expected

    processes.check_same("data", {"digest": "a"})
    with pytest.raises(ConfigError, match="process 1 has other data than process 0"):
        processes.check_same("data", rank)
    for failing in (0, 1):  # an error in one ends all of them there, and none of them waits
        ours = rank == failing
        expected_error = ValueError if ours else AnotherFailed
        with pytest.raises(expected_error, match="this one" if ours else f"process {failing} failed"):
            processes.gathered(partial(fails_on, failing, processes))
    with pytest.raises(AnotherFailed if rank else ValueError):
        processes.on_first(lambda: fails_on(0, processes))
    assert processes.gathered(lambda: rank) == [0, 1], "they are still together"


if __name__ == "__main__":
    with joined("cpu") as processes:
        try_out(processes)
