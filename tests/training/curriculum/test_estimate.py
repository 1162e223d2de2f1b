"""The counts are those of the real objects and of the paper; the bytes are those that are really kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from brainstacks.base_model import BaseModel
from brainstacks.config import Quantization
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.projections import find_sites, projection_dims
from tests.tiny import bank_of, random_stack, stack_config, tiny_config, tiny_model
from training.curriculum.dry_run import empty_model
from training.curriculum.estimate import activation_bytes, base_bytes, estimate, run_size
from training.recipe.recipe import Recipe, recipe_from
from training.rounds.active_stack import ActiveStack

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROWS, TOKENS = 2, 32


def domains(count: int) -> list[dict[str, str]]:
    return [{"name": f"d{i}", "licence": "MIT"} for i in range(count)]


def recipe(**changes: Any) -> Recipe:
    """Small stacks for tiny, unquantised bases."""
    return recipe_from(
        {
            "base": "any",
            "quantization": "none",
            "data": {"max_tokens": TOKENS},
            "stack": {"rank": 2, "experts": 3},
            "round": {"batch_size": ROWS, "steps": 10},
            "domains": domains(2),
            **changes,
        }
    )


def paper_recipe() -> Recipe:
    return recipe(stack={"rank": 16, "experts": 4}, quantization="nf4")


def tinyllama() -> nn.Module:
    return empty_model(
        tiny_config(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=64,
        )
    )


def gemma() -> nn.Module:
    return empty_model(
        tiny_config(
            "gemma3_text",
            vocab_size=262208,
            hidden_size=3840,
            intermediate_size=15360,
            num_hidden_layers=48,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=256,
            layer_types=None,
            tie_word_embeddings=True,
        )
    )


def kept_by_a_forward(model: nn.Module, frozen: int) -> int:
    """Bytes of all tensors that autograd keeps in a training forward, weights apart: the slow way."""
    sites = find_sites(model)
    dims = projection_dims(sites)
    config = stack_config(rank=8, experts=4, layers=2)
    active = ActiveStack(config, dims).train()
    dtype = next(model.parameters()).dtype
    bank = bank_of({n: random_stack(dims, n, config=config) for n in range(frozen)}, dtype)
    sources = [bank.bind([dict.fromkeys(range(frozen), 1.0)])] if frozen else []
    frozen_weights = [bank.resident(n).stack._memory[0] for n in range(frozen)]
    weights = [*model.parameters(), *active.parameters(), *frozen_weights]
    own = {w.untyped_storage().data_ptr() for w in weights}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS)
    segments = torch.arange(ROWS)[:, None].expand(ROWS, TOKENS)
    active.begin(segments, torch.ones_like(segments, dtype=torch.bool), ROWS)
    hooks = CompositionHooks(sites)
    hooks.attach()
    with hooks.composed(*sources, active), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.get_decoder()(input_ids=ids, use_cache=False)  # type: ignore[operator]
    hooks.detach()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)


def test_a_round_has_the_parameters_that_the_paper_gives_for_tinyllama() -> None:
    size = run_size(paper_recipe(), tinyllama())
    assert round(size.trained / 1e6, 1) == 53.6
    assert size.stored == 64 * 22 * 35840 + 4 * 22 * 17920  # the experts, a LoRA of rank 64, and the gates


def test_a_round_has_about_the_bytes_that_the_paper_gives_at_12b_in_half_precision() -> None:
    """The published files keep the gates' noise and 16 bits a parameter: 567 MB."""
    size = run_size(paper_recipe(), gemma())
    assert 2 * size.trained == pytest.approx(567e6, rel=0.03)
    assert size.round_file == 2 * size.stored


def test_counts_are_those_of_all_rounds_and_full_rows() -> None:
    own = {"name": "a", "licence": "MIT", "max_rounds": 3, "steps": 7}
    training = {"batch_size": ROWS, "steps": 10, "accumulation": 4}
    made = recipe(max_rounds=2, round=training, domains=[own, {"name": "b", "licence": "MIT"}])
    size = run_size(made, tiny_model())
    assert (size.rounds, size.steps) == (5, 3 * 7 + 2 * 10)
    assert size.tokens == size.steps * 4 * ROWS * TOKENS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("frozen", [0, 2])
def test_activations_are_what_autograd_keeps_and_rather_more(
    family: str, dtype: torch.dtype, frozen: int
) -> None:
    model = tiny_model(family, hidden_size=64, intermediate_size=160, head_dim=16).to(dtype)
    made = recipe(domains=domains(frozen + 1), stack={"rank": 8, "experts": 4})
    kept = kept_by_a_forward(model, frozen)
    assert kept <= activation_bytes(made, model, dtype) <= 1.35 * kept


def test_gradient_checkpointing_leaves_one_layer_and_the_layers_inputs() -> None:
    def bytes_with(layers: int, enabled: bool) -> int:
        model = empty_model(tiny_config(num_hidden_layers=layers))
        made = recipe(round={"batch_size": ROWS, "gradient_checkpointing": enabled})
        return activation_bytes(made, model, torch.float32)

    inputs = ROWS * TOKENS * 32 * 4
    assert bytes_with(6, True) - bytes_with(2, True) == 4 * inputs
    assert bytes_with(2, True) - 2 * inputs == bytes_with(1, False)


def test_the_frozen_stacks_and_the_active_one_take_what_they_hold() -> None:
    model = tiny_model()
    sites = find_sites(model)
    config = stack_config(rank=2, experts=3, layers=2)
    bank = bank_of({n: random_stack(projection_dims(sites), n, config=config) for n in range(2)})
    made = recipe(domains=domains(3))
    found = estimate(made, model, CPU, torch.float32)
    assert found.frozen == bank.nbytes
    trained = sum(p.numel() for p in ActiveStack(config, projection_dims(sites)).parameters())
    assert found.active == 16 * trained
    # auto takes 8-bit states on CUDA, where they are not for tensors as small as these
    assert estimate(made, model, CUDA, torch.float32).active == 16 * trained
    paper = paper_recipe()
    large = run_size(paper, tinyllama()).trained
    assert 10 * large < estimate(paper, tinyllama(), CUDA, torch.bfloat16).active < 10.04 * large


def test_the_null_space_takes_its_directions_and_a_single_domain_has_none() -> None:
    model = tiny_model()
    outputs, inputs = 32 + 16 + 16 + 32 + 48 + 48 + 32, 32 + 32 + 32 + 48
    for side, widths in (("output", outputs), ("input", inputs)):
        made = recipe(null_space={"side": side, "directions": 4})
        assert estimate(made, model, CPU, torch.float32).null_space == 2 * widths * 4 * 4
    assert estimate(recipe(domains=domains(1), null_space={}), model, CPU, torch.float32).null_space == 0


def test_logits_are_those_of_a_micro_batch_or_of_the_budget_of_an_evaluation() -> None:
    def logits(rows: int, tokens: int) -> int:
        made = recipe(data={"max_tokens": tokens}, round={"batch_size": rows})
        return estimate(made, tiny_model(), CPU, torch.float32).logits

    assert logits(1, 32) == logits(1, 64) == 1024 * 259 * (4 + 4 + 4)
    assert logits(1, 4096) == logits(4, 1024) == 4096 * 259 * (4 + 4 + 4 + 4 + 4)


def test_the_total_is_what_lies_on_the_device_in_training() -> None:
    found = estimate(recipe(null_space={}), tiny_model(), CPU, torch.float32)
    parts = dataclasses.asdict(found)
    assert found.total == sum(parts.values()) - found.router_features


def test_the_router_keeps_the_features_of_all_its_prompts() -> None:
    router = {"prompts": 5, "unmeasured": 7, "held_out": 2, "sequence_length": 16}
    one = recipe(router=router)
    assert (
        estimate(one, tiny_model(), CPU, torch.float32).router_features
        == len(one.domains) * (5 + 7 + 2) * 16 * 32 * 4
    )


@pytest.mark.parametrize("quantization", ["none", "native"])
def test_a_base_that_holds_its_values_takes_its_own_bytes(quantization: Quantization) -> None:
    model = tiny_model("gemma3_text", tie_word_embeddings=True)
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert base_bytes(model, quantization, torch.float32) == own


def test_in_float32_a_quantised_base_takes_the_bytes_of_one_that_is_not() -> None:
    made, model = paper_recipe(), tiny_model()
    found, packed = (estimate(made, model, CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    plain = estimate(dataclasses.replace(made, quantization="none"), model, CPU, torch.float32)
    assert found == plain
    assert found.base == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert found.frozen == 2 * packed.frozen
    assert packed.base < found.base
    assert packed.activations < found.activations


@pytest.mark.slow
def test_a_4_bit_base_takes_the_bytes_that_a_loaded_one_has(packaged_base: BaseModel) -> None:
    model = packaged_base.model
    measured = sum(buffer.nbytes for buffer in model.buffers())
    for parameter in model.parameters():
        measured += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = state.state2
            measured += sum(t.nbytes for t in (state.absmax, state.code, state.offset))
            measured += sum(t.nbytes for t in (nested.absmax, nested.code))
    estimated = base_bytes(empty_model(model.config), "nf4", torch.bfloat16)
    assert estimated == pytest.approx(measured, rel=0.05)
