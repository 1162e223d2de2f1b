"""The null space: its directions are those of a plain SVD, and a run gets back what it keeps of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from brainstacks.errors import ConfigError
from brainstacks.layers.projections import INPUT_GROUPS
from tests.tiny import bank_of
from tests.training.rounds.null_spaces import (
    BATCHES,
    EARLIER,
    EXAMPLES,
    SMALL,
    energy_share,
    hooked_model,
    measured,
    plain_deltas,
    plain_inputs,
    sources_of,
)
from training.data.batches import collate
from training.recipe.settings import NullSpaceConfig
from training.rounds.null_space import NullSpace, measure


def projector_distance(V: Tensor, U: Tensor) -> float:
    """Sine of the largest angle between two subspaces of as many dimensions."""
    assert V.shape == U.shape
    return float(torch.linalg.matrix_norm(V.double() @ V.double().T - U @ U.T, ord=2))


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
def test_for_a_stack_that_acts_on_the_response_prompts_are_not_measured(side: Any) -> None:
    config = NullSpaceConfig(side=side, directions=4, oversampling=44)
    null_space = measured(config, applies="response")
    batch = collate(EXAMPLES)
    inputs = plain_inputs(EARLIER, batch, batch.responses)
    vectors = inputs if side == "input" else plain_deltas(EARLIER, inputs)
    for (layer, part), V in null_space.bases.items():
        z = vectors[layer, part if isinstance(part, str) else INPUT_GROUPS[part][0]]
        U = torch.linalg.svd(z.T, full_matrices=False).U[:, :4]
        assert projector_distance(V, U) < 1e-5, (layer, part)
    assert null_space.facts()["tokens"] == sum(len(e.response) for e in EXAMPLES)


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
        bases.append(measure(model, hooks, sources_of(EARLIER), BATCHES, config, "everywhere").bases)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(V, bases[1][at]) for at, V in bases[0].items())


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
        measure(*hooked_model(), [bound], [batch], NullSpaceConfig(), "everywhere")
