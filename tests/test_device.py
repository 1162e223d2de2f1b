"""Devices by name, what they are, their memory, and whether they still compute; GPUs are made up."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from brainstacks.base_model import load_base
from brainstacks.cpu import cpu
from brainstacks.device import (
    Gpu,
    free_bytes,
    gpu,
    half,
    is_lost,
    is_out_of_memory,
    processor,
    reclaim,
    resolve_device,
    use,
)
from brainstacks.errors import ConfigError
from tests.fake_cuda import GIB, FakeCuda
from tests.tiny import save_base

CPU, SECOND = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "CUDA"])
def test_what_is_no_name_of_a_device_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device is '{name}'; it is auto, cpu, cuda, or one of several"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_without_a_device_is_refused_and_auto_takes_the_cpu(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device is {name}, and no CUDA device"):
        resolve_device(name)
    assert resolve_device("auto") == CPU


def test_one_of_several_gpus_is_had_by_its_number_and_the_others_by_the_threads_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch, count=2)
    assert resolve_device("cuda:1") == SECOND
    assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda", 0)
    use(SECOND)
    assert cuda.current == 1
    assert resolve_device("cuda") == resolve_device("auto") == SECOND
    use(CPU)
    assert cuda.current == 1
    assert resolve_device("cpu") == CPU


def test_a_number_beyond_the_last_is_refused_with_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, count=2)
    with pytest.raises(ConfigError, match="cuda:2, and CUDA devices here: 2; the last is cuda:1"):
        resolve_device("cuda:2")


def test_a_gpu_is_named_with_its_capability_and_a_cpu_with_its_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gpu(CPU) is None
    FakeCuda(monkeypatch, capability=(9, 0))
    assert gpu(SECOND) == gpu() == Gpu("NVIDIA Fake", (9, 0), 24 * GIB)
    assert processor(SECOND) == "NVIDIA Fake (compute capability 9.0, 24 GiB)"
    assert gpu(CPU) is None
    assert processor(CPU) == str(cpu())


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)],
)
def test_a_gpu_without_bfloat16_computes_in_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    FakeCuda(monkeypatch, capability=capability)
    assert half(SECOND) == dtype
    assert half(CPU) == torch.bfloat16


def test_free_memory_is_that_of_the_device_once_what_is_kept_for_later_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch, free=3 * GIB)
    assert free_bytes(SECOND) == 3 * GIB
    assert cuda.log == [("empty cache",)]
    assert free_bytes(CPU) > 0
    assert cuda.log == [("empty cache",)]


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_apart_whoever_says_it(error: Exception, out: bool) -> None:
    assert is_out_of_memory(error) == out


@pytest.mark.parametrize("out", [True, False])
def test_what_a_call_held_that_ran_out_of_memory_is_freed_while_its_error_is_still_looked_at(
    monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    cuda = FakeCuda(monkeypatch)
    held: list[weakref.ref[torch.Tensor]] = []

    def compute() -> None:
        activations = torch.empty(1)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("no memory") if out else RuntimeError("broken")

    try:
        compute()
    except RuntimeError as error:
        reclaim(error)
        assert (held[0]() is None) == out
    assert cuda.log == ([("empty cache",)] if out else [])


def test_a_gpu_is_lost_when_nothing_can_be_waited_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    assert not is_lost(SECOND)
    cuda.lost = True
    assert is_lost(SECOND)
    assert not is_lost(CPU)


def test_a_number_that_is_not_there_stops_a_load_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FakeCuda(monkeypatch, count=1)
    with pytest.raises(ConfigError, match="device is cuda:3"):
        load_base(tmp_path / "nothing", device="cuda:3")


@pytest.mark.parametrize(
    ("quantization", "saved", "wanted"),
    [
        ("nf4", torch.float32, torch.float16),
        ("none", torch.bfloat16, torch.float16),
        ("none", torch.float32, torch.float32),
        ("native", torch.float32, torch.float32),
    ],
)
def test_a_base_takes_float16_on_a_gpu_without_bfloat16_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    quantization: str,
    saved: torch.dtype,
    wanted: torch.dtype,
) -> None:
    from brainstacks import pretrained

    directory = save_base(tmp_path / "base", tokenizer=False, dtype=str(saved).removeprefix("torch."))
    FakeCuda(monkeypatch, capability=(7, 5))
    found = pretrained._dtype(directory, quantization, SECOND)  # type: ignore[arg-type]
    assert found == wanted or (found == "auto" and saved == wanted)
    assert ("NVIDIA Fake" in caplog.text) == (wanted == torch.float16)
