"""A command computes on the device that it is told, and on CUDA with one order for every sum."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from brainstacks.errors import ConfigError
from training.rounds import device
from training.rounds.device import FIXED, WORKSPACE, compute_repeatably, joined, take_device
from training.runs.launch import Launch
from training.runs.processes import Processes


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores what the process computes with."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    os.environ.pop(WORKSPACE, None)


def test_a_cpu_computes_as_it_did() -> None:
    assert take_device("cpu") == torch.device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    assert WORKSPACE not in os.environ


@pytest.mark.parametrize(("name", "chosen"), [("cuda", []), ("cuda:1", [1])])
def test_a_gpu_becomes_the_process_s_own_and_repeats_its_results(
    monkeypatch: pytest.MonkeyPatch, name: str, chosen: list[int]
) -> None:
    made_current = list[int | None]()
    monkeypatch.setattr(device, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made_current.append(device.index))
    assert take_device(name) == torch.device(name)
    assert made_current == chosen
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[WORKSPACE] == FIXED[0]


def test_what_the_environment_says_of_cublas_is_kept_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, FIXED[1])
    compute_repeatably()
    assert os.environ[WORKSPACE] == FIXED[1]
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0'.*set it to :4096:8 or :16:8"):
        compute_repeatably()


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="device is 'tpu'"), joined("tpu"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="cuda"), joined("cuda:0"):
            pass


def told_to_be_one_of_two(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Tells this process so, on a machine with GPUs; what is computed on when the two would meet."""
    told = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        device, "resolve_device", lambda name: torch.device("cuda" if name == "auto" else name)
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    found = list[torch.device]()

    def meeting(device: torch.device, launch: Launch | None) -> nullcontext[Processes]:
        found.append(device)
        return nullcontext(Processes(device))

    monkeypatch.setattr(device, "meeting", meeting)
    return found


@pytest.mark.parametrize(("name", "taken"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")])
def test_each_of_several_processes_takes_the_gpu_of_its_number(
    monkeypatch: pytest.MonkeyPatch, name: str, taken: str
) -> None:
    found = told_to_be_one_of_two(monkeypatch)
    with joined(name):
        assert found == [torch.device(taken)]


def test_several_processes_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told_to_be_one_of_two(monkeypatch)
    with pytest.raises(ConfigError, match="device is cuda:0, and each of the 2 processes"), joined("cuda:0"):
        pass
