"""What a backend computes is the model's own, and which of them computes what."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import Backend, EngineConfig, Quantization
from brainstacks.engine.runner import backend
from brainstacks.engine.runner.batch import build
from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.routing.features import decoder_states
from tests.engine.driving import prompt_of
from tests.engine.stepped import LENGTHS, MIX, Stepped, Weights, assert_close, cut, expected
from tests.tiny import FAMILIES, plain_logits, tiny_model

BACKENDS: list[Backend] = ["torch", "cpu"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", BACKENDS)
def test_float32_logits_are_those_of_transformers_and_the_plain_deltas(
    tmp_path: Path, name: Backend, family: str
) -> None:
    stepped = Stepped(tmp_path, name, family)
    prompts = [prompt_of(length) for length in LENGTHS]
    for prompt, row, found in zip(prompts, MIX, stepped.logits(prompts, MIX), strict=True):
        assert_close(found, expected(family, prompt, stepped.stacks, row), 1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("name", BACKENDS)
def test_prompts_cut_into_runs_beside_single_tokens_of_others_have_the_same_logits(
    tmp_path: Path, name: Backend, family: str
) -> None:
    stepped = Stepped(tmp_path, name, family)
    prompts, weights = [prompt_of(40), prompt_of(40, seed=1)], [MIX[3], MIX[0]]
    first, second = stepped.rows(prompts, weights)
    runs = cut(first, 16, 7, 1, 13, 3)
    others = cut(second, 36, 1, 1, 1, 1)
    found: list[list[Tensor]] = [[], []]
    for pair in zip(runs, others, strict=True):
        for part, logits in zip(found, stepped.run(pair), strict=True):
            part.append(logits)
    for prompt, row, parts in zip(prompts, weights, found, strict=True):
        assert_close(torch.cat(parts), expected(family, prompt, stepped.stacks, row), 1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"head_dim": 20, "num_key_value_heads": 1}, {"vocab_size": 261}, {"intermediate_size": 210}],
)
def test_shapes_that_are_no_multiples_of_a_vector(tmp_path: Path, changes: dict[str, Any]) -> None:
    odd = {"hidden_size": 36, "intermediate_size": 50, **changes}
    stepped = Stepped(tmp_path, "cpu", **odd)
    prompts = [prompt_of(length) for length in LENGTHS]
    for prompt, row, found in zip(prompts, MIX, stepped.logits(prompts, MIX), strict=True):
        assert_close(found, expected("llama", prompt, stepped.stacks, row, **odd), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("quantization", "exact"), [("none", True), ("nf4", True), ("nf4", False), ("int8", False)]
)
def test_the_compiled_step_gives_a_row_the_same_bits_alone_and_among_others(
    tmp_path: Path, dtype: torch.dtype, quantization: Quantization, exact: bool
) -> None:
    stepped = Stepped(tmp_path, "cpu", "qwen3", quantization, exact, dtype, **WIDE)
    prompts = [prompt_of(length, seed=length) for length in LENGTHS]
    rows = stepped.rows(prompts, MIX)
    together = stepped.run(rows)
    for row, found in zip(rows, together, strict=True):
        (alone,) = stepped.run([row])
        assert torch.equal(alone, found)
    parts = [torch.cat([stepped.run([part])[0] for part in cut(rows[2], 1, 14, 1, 1, 16)])]
    assert torch.equal(parts[0], together[2]), "nor on how its prompt was cut"


# --- quantised bases -----------------------------------------------------------------------------

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def dequantised(base: BaseModel, **changes: Any) -> Any:
    """A float32 copy of the base with the very values of its quantised projections; ask before a forward."""
    import bitsandbytes.functional as bnb

    model = tiny_model(**changes)
    names = {module: name for name, module in base.model.named_modules()}
    for (layer, projection), site in base.sites.items():
        blocks, weight = base.blocks(layer, projection), site.module.get_parameter("weight")
        values = (
            torch.from_numpy(blocks.values())
            if blocks is not None
            else bnb.dequantize_4bit(weight, weight.quant_state).float()  # type: ignore[attr-defined]
        )
        model.get_submodule(names[site.module]).weight.data = values
    return model


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("torch", "nf4"), ("cpu", "nf4"), ("cpu", "int8")],  # bitsandbytes' own int8 rounds activations too
)
@pytest.mark.parametrize("head_dim", [16, 8])  # o_proj's rows are no whole NF4 blocks at 8
def test_exact_computes_with_the_very_values_of_a_quantised_base(
    tmp_path: Path, name: Backend, quantization: Quantization, head_dim: int
) -> None:
    changes = WIDE | {"head_dim": head_dim}
    stepped = Stepped(tmp_path, name, "llama", quantization, **changes)
    plain, prompts = dequantised(stepped.base, **changes), [prompt_of(length) for length in LENGTHS]
    for prompt, row, found in zip(prompts, MIX, stepped.logits(prompts, MIX), strict=True):
        chosen = [(stepped.stacks[key], weight) for key, weight in row.items()]
        assert_close(found, plain_logits(plain, prompt, chosen), 1e-4)


@pytest.mark.parametrize("weights", [{}, {"all": 0.8}])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_int8_activations_stay_within_a_tenth_of_the_logits_spread_of_the_very_values(
    tmp_path: Path, quantization: Quantization, weights: Weights
) -> None:
    """Root mean square; with a stack that keeps every expert: a choice near a tie may be another."""
    stepped = Stepped(tmp_path, "cpu", "llama", quantization, exact=False, **WIDE)
    plain, prompt = dequantised(stepped.base, **WIDE), prompt_of(80)
    (found,) = stepped.logits([prompt], [weights])
    wanted = plain_logits(plain, prompt, [(stepped.stacks[key], weight) for key, weight in weights.items()])
    error = float((found - wanted).square().mean().sqrt() / wanted.std())
    assert 1e-3 < error < 0.1


# --- hidden states -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", BACKENDS)
def test_hidden_states_are_those_of_the_base_alone(tmp_path: Path, name: Backend, family: str) -> None:
    stepped = Stepped(tmp_path, name, family)
    prompts = [prompt_of(length) for length in (33, 9, 1)]
    batch = build(stepped.rows(prompts, [MIX[0]] * 3))
    found = stepped.hidden_states(batch)
    for prompt, states in zip(prompts, zip(*(s.split([33, 9, 1]) for s in found), strict=True), strict=True):
        with torch.no_grad():
            plain = decoder_states(tiny_model(family), input_ids=torch.tensor([prompt]))
        for state, wanted in zip(states, plain, strict=True):
            torch.testing.assert_close(state, wanted[0], atol=1e-4, rtol=1e-4)


def test_hidden_states_leave_keys_and_values_for_who_goes_on(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, "cpu")
    (row,) = stepped.rows([prompt_of(40)], [{}])
    head, tail = cut(row, 24, 16)
    stepped.hidden_states(build([head]))
    (found,) = stepped.run([tail])
    assert_close(found, expected("llama", prompt_of(40), {}, {})[24:], 1e-4)


# --- who computes what ---------------------------------------------------------------------------

UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "rotary embedding": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "a bias on o_proj": ("llama", {"attention_bias": True}),
    "the activation": ("llama", {"hidden_act": "relu"}),
    "not granite": ("granite", {}),
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_a_decoder_that_the_compiled_step_does_not_know_is_left_to_torch_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    family, changes = UNKNOWN[reason]
    with caplog.at_level(logging.WARNING, "brainstacks.engine.runner.backend"):
        stepped = Stepped(tmp_path, "auto", family, **changes)
    assert stepped.backend.name == "torch (cpu)"
    (record,) = caplog.records
    assert "computed by PyTorch, which is slower on a CPU" in record.message
    assert reason in record.message
    prompt = prompt_of(20)
    (found,) = stepped.logits([prompt], [MIX[0]])
    wanted = expected(family, prompt, stepped.stacks, MIX[0], **changes)
    assert_close(found, wanted, 1e-4)
    with pytest.raises(ConfigError, match=f"the backend cpu does not compute 'base': .*{reason}"):
        Stepped(tmp_path / "asked for", "cpu", family, **changes)


def test_auto_takes_the_compiled_step_where_it_knows_the_decoder(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, "auto", exact=False)
    assert stepped.backend.name.startswith("cpu (")
    assert stepped.backend.name.endswith(", int8 activations)")
    assert not stepped.backend.fixed_shapes
    deterministic = EngineConfig(deterministic=True)
    hooks = CompositionHooks(stepped.base.sites)
    exact = backend.choose(stepped.base, hooks, stepped.new_cache, deterministic)
    assert exact.name.endswith(", exact)")


def test_the_compiled_step_is_for_the_cpu_alone(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, "torch")
    elsewhere = replace(stepped.base, device=torch.device("meta"))
    hooks = CompositionHooks(stepped.base.sites)
    with pytest.raises(ConfigError, match="the base is on meta"):
        backend.choose(elsewhere, hooks, stepped.new_cache, EngineConfig(backend="cpu"))


@pytest.mark.parametrize(("name", "refused"), [("torch", True), ("cpu", False)])
def test_int8_is_deterministic_only_where_bitsandbytes_does_not_compute(
    tmp_path: Path, name: Backend, refused: bool
) -> None:
    stepped = Stepped(tmp_path, name)
    base = replace(stepped.base, quantization="int8")
    config = EngineConfig(backend=name, deterministic=True)
    hooks = CompositionHooks(stepped.base.sites)
    if not refused:
        assert backend.choose(base, hooks, stepped.new_cache, config).name.endswith(", exact)")
        return
    with pytest.raises(ConfigError, match="--deterministic is refused with --quantization int8"):
        backend.choose(base, hooks, stepped.new_cache, config)
