"""A command computes on the device that it is told, and on CUDA with one order for every sum."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from brainstacks.errors import ConfigError
from training.rounds import device
from training.rounds.device import FIXED, WORKSPACE, compute_repeatably, named, take_device
from training.rounds.workshop import make_accelerator


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
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        make_accelerator("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="cuda"):
            make_accelerator("cuda:0")


@pytest.mark.parametrize(("device", "name"), [("cpu", "cpu"), ("cpu:0", "cpu"), ("cuda:1", "cuda:1")])
def test_a_device_of_several_processes_has_a_name_that_options_take(device: str, name: str) -> None:
    assert named(torch.device(device)) == name
