"""The null space: its directions are those of a plain SVD, and a folded stack keeps out of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks, DeltaSource
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import INPUT_GROUPS, find_sites, projection_dims
from tests.tiny import bank_of, plain_delta, plainly_composed, random_stack, stack_config, tiny_model
from tests.training.examples import random_examples
from training.data.batches import Batch, collate
from training.recipe.settings import NullSpaceConfig
from training.rounds.null_space import NullSpace, measure

DIMS = projection_dims(find_sites(tiny_model()))
EARLIER = [
    random_stack(DIMS, seed=1, rounds=2),
    random_stack(DIMS, seed=2, config=stack_config(rank=3, experts=2, top_k=1)),
]
"""Two stacks of different shapes, 12 and 6 columns wide."""
EXAMPLES = random_examples(8)
BATCHES = [collate(EXAMPLES[:5]), collate(EXAMPLES[5:])]
SMALL = random_stack(DIMS, seed=3)
"""One of 6 columns."""


def measured(
    config: NullSpaceConfig,
    stacks: Sequence[StackTensors] = EARLIER,
    batches: Sequence[Batch] | None = None,
) -> NullSpace:
    """Directions of `stacks` on the tiny Llama, in float64."""
    batches = BATCHES if batches is None else batches
    return measure(*hooked_model(), sources_of(stacks), batches, config, ["chat", "code"])


def hooked_model() -> tuple[Any, CompositionHooks]:
    model = tiny_model().double()
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    return model, hooks


def sources_of(stacks: Sequence[StackTensors]) -> list[DeltaSource]:
    by_name = {f"stack {i}": stack for i, stack in enumerate(stacks)}
    return [bank_of(by_name, torch.float64).bind([dict.fromkeys(by_name, 1.0)])] if stacks else []


def plain_inputs(stacks: Sequence[StackTensors], batch: Batch) -> dict[tuple[int, str], Tensor]:
    """What every projection reads at the real tokens of `batch`, [tokens, d_in], under `stacks` at 1.0."""
    model = tiny_model().double()
    inputs: dict[tuple[int, str], Tensor] = {}
    for key, site in find_sites(model).items():
        site.module.register_forward_pre_hook(
            lambda module, args, at=key: inputs.__setitem__(at, args[0][batch.attention_mask])
        )
    with torch.no_grad(), plainly_composed(model, [(stack, 1.0) for stack in stacks]):
        model(input_ids=batch.input_ids, use_cache=False)
    return inputs


def plain_deltas(
    stacks: Sequence[StackTensors], inputs: dict[tuple[int, str], Tensor]
) -> dict[tuple[int, str], Tensor]:
    """What `stacks` write there together, [tokens, d_out]."""
    return {
        at: torch.stack([plain_delta(stack, *at, x) for stack in stacks]).sum(0) for at, x in inputs.items()
    }


def projector_distance(V: Tensor, U: Tensor) -> float:
    """Sine of the largest angle between two subspaces of as many dimensions."""
    assert V.shape == U.shape
    return float(torch.linalg.matrix_norm(V.double() @ V.double().T - U @ U.T, ord=2))


def energy_share(V: Tensor, vectors: Tensor) -> float:
    """||V^T z||^2 / ||z||^2 over all rows z of `vectors`."""
    return float((vectors.double() @ V.double()).square().sum() / vectors.double().square().sum())


def folded(stack: StackTensors, null_space: NullSpace) -> StackTensors:
    """`stack` with both projections folded in; each of them leaves the other side's null space alone."""
    tensors = dict(stack.tensors)
    for layer, projection in find_sites(tiny_model()):
        group = next(i for i, names in enumerate(INPUT_GROUPS) if projection in names)
        name = f"rounds.0.layers.{layer}.{projection}"
        tensors[f"{name}.B"] = null_space.project_up(layer, projection, tensors[f"{name}.B"].T).T
        tensors[f"{name}.A"] = null_space.project_down(layer, group, tensors[f"{name}.A"])
    return StackTensors(stack.config, stack.rounds, tensors)


# --- directions ----------------------------------------------------------------------------------


def test_output_directions_are_those_of_a_full_svd_of_every_delta() -> None:
    null_space = measured(NullSpaceConfig(directions=4))
    deltas = plain_deltas(EARLIER, plain_inputs(EARLIER, collate(EXAMPLES)))
    assert set(null_space.bases) == set(deltas)
    for at, delta in deltas.items():
        U = torch.linalg.svd(delta.T, full_matrices=False).U[:, :4]
        assert projector_distance(null_space.bases[at], U) < 1e-5, at


def test_input_directions_are_those_of_a_full_svd_of_every_input() -> None:
    null_space = measured(NullSpaceConfig(side="input", directions=4, oversampling=44))
    inputs = plain_inputs(EARLIER, collate(EXAMPLES))
    assert len(null_space.bases) == 2 * len(INPUT_GROUPS)
    for layer in range(2):
        for group, names in enumerate(INPUT_GROUPS):
            U = torch.linalg.svd(inputs[layer, names[0]].T, full_matrices=False).U[:, :4]
            assert projector_distance(null_space.bases[layer, group], U) < 1e-5, (layer, names)


@pytest.mark.parametrize("side", ["output", "input"])
def test_a_sketch_narrower_than_the_rank_captures_almost_what_the_best_directions_do(side: Any) -> None:
    config = NullSpaceConfig(side=side, directions=4, oversampling=4, iterations=4)
    null_space = measured(config)
    inputs = plain_inputs(EARLIER, collate(EXAMPLES))
    vectors = inputs if side == "input" else plain_deltas(EARLIER, inputs)
    shares = []
    for (layer, part), V in null_space.bases.items():
        z = vectors[layer, part if isinstance(part, str) else INPUT_GROUPS[part][0]]
        best = torch.linalg.svd(z.T, full_matrices=False).U[:, :4]
        shares.append(energy_share(V, z))
        assert 0.99 * energy_share(best, z) < shares[-1] < (1 + 1e-6) * energy_share(best, z), (layer, part)
    captured = null_space.facts()["captured_energy"]
    assert 0.99 * min(shares) < captured["min"] < (1 + 1e-6) * min(shares)
    assert 0.99 * sum(shares) < captured["mean"] * len(shares) < (1 + 1e-6) * sum(shares)


@pytest.mark.parametrize("side", ["output", "input"])
def test_directions_do_not_depend_on_padding_batching_or_packing(side: Any) -> None:
    config = NullSpaceConfig(side=side, directions=4, oversampling=44)
    alone = measured(config, batches=[collate([e]) for e in EXAMPLES])
    padded = measured(config, batches=[collate(EXAMPLES)])
    packed = measured(config, batches=[collate([EXAMPLES[:3], EXAMPLES[3:]])])
    for at, V in alone.bases.items():
        assert projector_distance(padded.bases[at], V.double()) < 1e-5, at
        assert projector_distance(packed.bases[at], V.double()) < 1e-5, at


def test_no_more_directions_are_kept_than_the_deltas_have() -> None:
    null_space = measured(NullSpaceConfig(directions=30), stacks=[SMALL])
    assert {V.shape[1] for V in null_space.bases.values()} == {6}
    for V in null_space.bases.values():
        torch.testing.assert_close(V.T @ V, torch.eye(6), atol=1e-6, rtol=0)
    facts = null_space.facts()
    assert facts["directions"] == {"min": 6, "mean": 6.0, "max": 6}
    assert facts["captured_energy"]["min"] == pytest.approx(1.0)


@pytest.mark.parametrize("side", ["output", "input"])
def test_measuring_is_repeatable_and_leaves_the_global_generator_alone(side: Any) -> None:
    config = NullSpaceConfig(side=side, directions=4, oversampling=2, iterations=0)
    model, hooks = hooked_model()
    bases = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        bases.append(measure(model, hooks, sources_of(EARLIER), BATCHES, config).bases)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(V, bases[1][at]) for at, V in bases[0].items())


# --- the projection ------------------------------------------------------------------------------


def test_a_folded_stack_writes_nothing_where_the_earlier_ones_write_on_fresh_inputs() -> None:
    null_space = measured(NullSpaceConfig(directions=16), stacks=[SMALL])  # all that SMALL can write
    new = folded(random_stack(DIMS, seed=7), null_space)
    fresh = plain_inputs([SMALL, new], collate(random_examples(6, seed=5)))
    earlier, later = plain_deltas([SMALL], fresh), plain_deltas([new], fresh)
    for at, delta in later.items():
        assert energy_share(null_space.bases[at], delta) < 1e-6, at
        assert float((delta @ earlier[at].T).abs().max()) < 1e-5 * float(delta.norm() * earlier[at].norm())


def test_with_fewer_directions_than_the_span_those_are_avoided() -> None:
    null_space = measured(NullSpaceConfig(directions=3))
    new = folded(random_stack(DIMS, seed=7), null_space)
    fresh = plain_inputs([*EARLIER, new], collate(random_examples(6, seed=5)))
    for at, delta in plain_deltas([new], fresh).items():
        assert null_space.bases[at].shape[1] == 3
        assert energy_share(null_space.bases[at], delta) < 1e-6, at


def test_the_folded_output_is_the_projected_output() -> None:
    null_space = measured(NullSpaceConfig(directions=5))
    new = random_stack(DIMS, seed=7)
    fresh = plain_inputs(EARLIER, collate(random_examples(6, seed=5)))
    plain, found = plain_deltas([new], fresh), plain_deltas([folded(new, null_space)], fresh)
    for at, delta in plain.items():
        V = null_space.bases[at].double()
        torch.testing.assert_close(found[at], delta - (delta @ V) @ V.T, atol=1e-5, rtol=1e-5)


def test_a_stack_folded_on_the_input_side_reads_nothing_of_the_avoided_directions() -> None:
    null_space = measured(NullSpaceConfig(side="input", directions=5))
    new = random_stack(DIMS, seed=7)
    inside = folded(new, null_space)
    for layer, projection in find_sites(tiny_model()):
        group = next(i for i, names in enumerate(INPUT_GROUPS) if projection in names)
        V = null_space.bases[layer, group]
        name = f"rounds.0.layers.{layer}.{projection}"
        A = new.tensors[f"{name}.A"]
        x = torch.randn(7, V.shape[0], generator=torch.Generator().manual_seed(layer))
        torch.testing.assert_close(
            x @ inside.tensors[f"{name}.A"].T, (x - (x @ V) @ V.T) @ A.T, atol=1e-5, rtol=1e-5
        )
        assert energy_share(V, inside.tensors[f"{name}.A"]) < 1e-6
        assert torch.equal(inside.tensors[f"{name}.B"], new.tensors[f"{name}.B"])


@pytest.mark.parametrize("side", ["output", "input"])
def test_gradients_are_those_of_the_plain_formula(side: Any) -> None:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    x, A, up = draw(9, 32), draw(6, 32).requires_grad_(), draw(6, 32).requires_grad_()
    V = torch.linalg.qr(draw(32, 5)).Q
    place = (0, "q_proj") if side == "output" else (0, 0)
    null_space = NullSpace(side, {place: V}, {})
    found = x @ null_space.project_down(0, 0, A).T @ null_space.project_up(0, "q_proj", up)
    read = x - (x @ V) @ V.T if side == "input" else x
    delta = read @ A.T @ up
    plain = delta - (delta @ V) @ V.T if side == "output" else delta
    torch.testing.assert_close(found, plain)
    weight = draw(9, 32)
    gradients = torch.autograd.grad((found.tanh() * weight).sum(), (A, up))
    expected = torch.autograd.grad((plain.tanh() * weight).sum(), (A, up))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize(("d_out", "directions"), [(192, 32), (576, 64)])
def test_rounding_a_folded_stack_to_bfloat16_keeps_it_out(d_out: int, directions: int) -> None:
    random = torch.Generator().manual_seed(d_out)
    V = torch.linalg.qr(torch.randn(d_out, directions, generator=random)).Q
    null_space = NullSpace("output", {(0, "q_proj"): V}, {})
    up = torch.randn(64, d_out, generator=random)
    up += 3 * torch.randn(64, directions, generator=random) @ V.T  # most of it where it must not write
    rounded = null_space.project_up(0, "q_proj", up).bfloat16()
    hidden = torch.randn(100, 64, generator=random)
    assert energy_share(V, hidden @ up) > 0.5
    assert energy_share(V, hidden @ rounded.float()) < 1e-6


def test_the_projection_keeps_the_dtype_and_leaves_other_places_as_they_are() -> None:
    config = stack_config(projections=("q_proj", "v_proj"))
    null_space = measured(NullSpaceConfig(directions=4), stacks=[random_stack(DIMS, 1, config=config)])
    up, A = torch.ones(6, 32), torch.ones(6, 32)
    assert null_space.project_up(0, "q_proj", up.bfloat16()).dtype == torch.bfloat16
    assert null_space.project_up(0, "o_proj", up) is up
    assert null_space.project_down(0, 0, A) is A


# --- what a run keeps of it ----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["output", "input"])
def test_tensors_and_facts_rebuild_it(side: Any) -> None:
    null_space = measured(NullSpaceConfig(side=side, directions=4, seed=3))
    facts = json.loads(json.dumps(null_space.facts()))
    again = NullSpace.from_tensors(null_space.to_tensors(), facts)
    assert again.side == side
    assert again.facts() == null_space.facts()
    assert set(again.bases) == set(null_space.bases)
    assert all(torch.equal(again.bases[at], V) for at, V in null_space.bases.items())


def test_the_facts_say_what_was_measured() -> None:
    facts = measured(NullSpaceConfig(directions=4, seed=3)).facts()
    tokens = sum(len(e) for e in EXAMPLES)
    assert facts["side"] == "output"
    assert facts["directions"] == {"min": 4, "mean": 4.0, "max": 4}
    assert (facts["domains"], facts["samples"], facts["tokens"]) == (["chat", "code"], 8, tokens)
    assert (facts["seed"], facts["oversampling"], facts["iterations"]) == (3, 16, 2)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match="no output directions"):
        measured(NullSpaceConfig(), stacks=[])
    with pytest.raises(ConfigError, match="over 0 batches"):
        measured(NullSpaceConfig(side="input"), batches=[])


def test_sources_that_are_bound_to_packed_tokens_are_refused() -> None:
    batch = collate(EXAMPLES[:1])
    bank = bank_of({"a": SMALL}, torch.float64)
    bound = bank.bind([{"a": 1.0}] * batch.input_ids.shape[1], apart=True)
    with pytest.raises(TypeError, match="whole LowRanks"):
        measure(*hooked_model(), [bound], [batch], NullSpaceConfig())
