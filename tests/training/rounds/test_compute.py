"""What a run computes in is asked for, known, or measured; and what is chosen is done."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from brainstacks.base_model import BaseModel, in_float32, load_base
from brainstacks.cpu import cpu
from brainstacks.errors import ConfigError
from brainstacks.layers.dequantized import float32_bytes
from tests.tiny import save_base
from tests.tiny_gguf import save_gguf
from training.recipe.recipe import recipe_from
from training.rounds import compute
from training.rounds.compute import candidates, choose, load_as_stored, load_to_measure, memory_of, seconds

CPU = torch.device("cpu")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)


@pytest.fixture
def base(directory: Path) -> BaseModel:
    return load_base(directory, quantization="nf4", device="cpu")


def measured(as_it_is: float, widened: float) -> compute.Measure:
    def figures(linear: nn.Module, dtype: torch.dtype, backward: bool) -> tuple[float, float]:
        assert dtype == torch.bfloat16
        return as_it_is, widened

    return figures


def never(*arguments: Any) -> tuple[float, float]:
    raise AssertionError("measured without need")


def test_the_faster_of_the_two_is_taken_and_the_figures_are_told(base: BaseModel) -> None:
    fast = choose(base, "auto", backward=True, measure=measured(0.25, 0.004))
    assert fast.dtype == "float32"
    told = "computes in float32: the forward and backward of one linear takes a core 4.0 ms in float32, 250.0"
    assert str(fast) == f"{told} ms in bfloat16: {cpu()}"
    slow = choose(base, "auto", backward=False, measure=measured(0.004, 0.25))
    assert slow.dtype == "bfloat16"
    assert "the forward of one linear" in slow.reason


def test_what_the_recipe_says_is_not_measured(base: BaseModel) -> None:
    for asked in ("float32", "bfloat16"):
        found = choose(base, asked, "bfloat16", backward=True, measure=never)
        assert found.dtype == asked
        assert str(found) == f"computes in {asked}: as the recipe says"


def test_a_run_that_was_started_keeps_its_choice_whatever_would_be_measured_now(base: BaseModel) -> None:
    for begun in ("float32", "bfloat16"):
        found = choose(base, "auto", begun, backward=True, measure=never)
        assert (found.dtype, found.reason) == (begun, "as the run was started")


def test_the_base_becomes_what_was_chosen(base: BaseModel) -> None:
    assert choose(base, "bfloat16", backward=True).of(base) is base
    widened = choose(base, "float32", backward=True).of(base)
    assert widened.dtype == widened.model.dtype == torch.float32


def test_a_native_base_is_rounded_to_bfloat16_or_has_the_files_own_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(save_gguf(tmp_path / "base.gguf"))
    plan = recipe_from({"base": path, "quantization": "native", "domains": [{"name": "a", "licence": "MIT"}]})
    exact = dict(load_base(path, quantization="native", device="cpu").model.named_parameters())
    stored = load_as_stored(plan, "cpu")
    for name, values in stored.model.named_parameters():
        assert torch.equal(values, exact[name].bfloat16()), name
    assert choose(stored, "auto", backward=True, measure=measured(0.004, 0.25)).of(stored) is stored
    widened = choose(stored, "auto", backward=True, measure=measured(0.25, 0.004)).of(stored)
    for name, values in widened.model.named_parameters():
        assert torch.equal(values, exact[name]), name


def test_without_the_room_auto_keeps_the_packed_weights_and_says_so(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = float32_bytes(base.model)
    monkeypatch.setattr(compute, "memory_of", lambda device: 2 * needed - 1)
    found = choose(base, "auto", backward=True, measure=never)
    assert found.dtype == "bfloat16"
    assert "weights in float32 would take 0.0 GB of the machine's 0.0 GB" in str(found)
    assert candidates(base.model, torch.bfloat16, "auto", CPU) == (torch.bfloat16,)
    assert choose(base, "float32", backward=True).dtype == "float32"  # asked for, and there is room
    monkeypatch.setattr(compute, "memory_of", lambda device: needed - 1)
    with pytest.raises(
        ConfigError, match=r"compute is float32, whose weights take .*; take compute: bfloat16"
    ):
        choose(base, "float32", backward=True)


def test_a_base_of_float32_is_neither_measured_nor_narrowed(directory: Path) -> None:
    base = load_base(directory, quantization="none", device="cpu")
    found = choose(base, "auto", backward=True, measure=never)
    assert str(found) == "computes in float32: the base's own dtype, on cpu"
    assert found.of(base) is base
    assert choose(base, "float32", backward=True).of(base) is base
    with pytest.raises(ConfigError, match="compute is bfloat16, and this base's own dtype is float32"):
        choose(base, "bfloat16", backward=True)


def test_a_gpu_computes_in_the_bases_own_dtype_unless_asked(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = on_cuda(base, monkeypatch, ampere=True).device
    assert candidates(base.model, torch.bfloat16, "auto", cuda) == (torch.bfloat16,)
    assert candidates(base.model, torch.bfloat16, "auto", CPU) == (torch.bfloat16, torch.float32)
    assert candidates(base.model, torch.bfloat16, "float32", cuda) == (torch.float32,)


def on_cuda(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, *, ampere: bool, memory: int = 1 << 40
) -> BaseModel:
    """`base` as if it lay on a GPU; nothing is computed with it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: ampere)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    monkeypatch.setattr(compute, "memory_of", lambda device: memory)
    return dataclasses.replace(base, device=torch.device("cuda"))


def test_a_gpu_with_bfloat16_computes_in_it_unmeasured(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = on_cuda(base, monkeypatch, ampere=True)
    found = choose(there, "auto", backward=True, measure=never)
    assert str(found) == "computes in bfloat16: the base's own dtype, on cuda"
    assert choose(there, "float32", backward=True).dtype == "float32"


def test_a_gpu_without_bfloat16_computes_in_float32_or_says_why_not(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = on_cuda(base, monkeypatch, ampere=False)
    found = choose(older, "auto", backward=True, measure=never)
    assert str(found).startswith("computes in float32: Tesla T4 has no bfloat16 of its own")
    assert candidates(base.model, torch.bfloat16, "auto", older.device) == (torch.float32,)
    for asked, begun in (("bfloat16", None), ("auto", "bfloat16")):
        with pytest.raises(ConfigError, match=r"compute is bfloat16, and Tesla T4 .*; take compute: float32"):
            choose(older, asked, begun, backward=True)  # type: ignore[arg-type]
    crowded = on_cuda(base, monkeypatch, ampere=False, memory=float32_bytes(base.model) - 1)
    with pytest.raises(ConfigError, match=r"whose weights take .*Tesla T4 .*: take a smaller base"):
        choose(crowded, "auto", backward=True)


def test_a_base_of_float16_trains_in_float32_on_a_gpu(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = dataclasses.replace(on_cuda(base, monkeypatch, ampere=True), dtype=torch.float16)
    assert choose(half, "auto", backward=True).dtype == "float32"
    assert "gradients in float16 vanish" in choose(half, "auto", backward=True).reason
    assert choose(half, "auto", backward=False).dtype == "float16"


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("backward", [True, False])
def test_measuring_leaves_the_base_as_it_was(directory: Path, quantization: Any, backward: bool) -> None:
    """As it is served, too: there a forward repacks the weights of a CPU with AVX512-BF16."""
    options = {"quantization": quantization, "device": "cpu", "dtype": torch.bfloat16}
    base, other = (load_base(directory, **options) for _ in range(2))
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    figures = seconds(base.sites[0, "k_proj"].module, base.dtype, backward)
    assert min(figures) > 0
    assert torch.get_num_threads() == threads
    widened, untouched = (in_float32(b).model.state_dict() for b in (base, other))
    assert widened.keys() == untouched.keys()
    assert all(torch.equal(widened[name], untouched[name]) for name in widened)


def test_what_is_measured_with_says_what_it_computes_in(directory: Path) -> None:
    told: list[str] = []
    plan = {"base": str(directory), "domains": [{"name": "chat", "licence": "CC0"}]}
    for changes, begun, dtype in (
        ({"compute": "float32"}, None, torch.float32),
        ({"compute": "bfloat16"}, "float32", torch.bfloat16),
        ({}, "float32", torch.float32),
    ):
        assert load_to_measure(recipe_from({**plan, **changes}), begun, told.append).dtype == dtype
    assert [line.split(": ")[1] for line in told] == ["as the recipe says"] * 2 + ["as the run was started"]


def test_a_cpu_has_the_memory_of_its_machine() -> None:
    assert memory_of(CPU) > 1 << 28
