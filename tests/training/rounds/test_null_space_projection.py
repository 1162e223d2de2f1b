"""A stack that was folded into a null space keeps out of its directions, on new inputs and in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import INPUT_GROUPS, find_sites
from tests.tiny import random_stack, stack_config, tiny_model
from tests.training.examples import random_examples
from tests.training.rounds.null_spaces import (
    DIMS,
    EARLIER,
    SMALL,
    energy_share,
    measured,
    plain_deltas,
    plain_inputs,
)
from training.data.batches import collate
from training.recipe.settings import NullSpaceConfig
from training.rounds.null_space import NullSpace


def folded(stack: StackTensors, null_space: NullSpace) -> StackTensors:
    """`stack` with both projections folded in; each of them leaves the other side's null space alone."""
    tensors = dict(stack.tensors)
    for layer, projection in find_sites(tiny_model()):
        group = next(i for i, names in enumerate(INPUT_GROUPS) if projection in names)
        name = f"rounds.0.layers.{layer}.{projection}"
        tensors[f"{name}.B"] = null_space.project_up(layer, projection, tensors[f"{name}.B"].T).T
        tensors[f"{name}.A"] = null_space.project_down(layer, group, tensors[f"{name}.A"])
    return StackTensors(stack.config, stack.rounds, tensors)


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
