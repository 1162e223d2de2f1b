"""Subspaces of stacks: equal to a plain SVD of the delta matrix, and their overlap to its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites, projection_dims
from tests.tiny import random_stack, stack_config, tiny_model
from training.rounds.subspaces import (
    expected_squared_cosine,
    mean_squared_cosine,
    overlaps,
    read_subspace,
    singular_spectrum,
    write_subspace,
)

DIMS = projection_dims(find_sites(tiny_model()))
STACK = random_stack(DIMS, seed=1, rounds=2)
"""12 columns."""


def dense(stack: StackTensors, layer: int, projection: str) -> Tensor:
    """The delta matrix, expert by expert."""
    r = stack.config.rank
    total = torch.zeros((), dtype=torch.float64)
    for n in range(stack.rounds):
        A, B = (
            stack.tensors[f"rounds.{n}.layers.{layer}.{projection}.{part}"].double() for part in ("A", "B")
        )
        for e in range(stack.config.experts):
            rows = slice(e * r, (e + 1) * r)
            total = total + stack.config.scaling * B[:, rows] @ A[rows]
    return total


def random_basis(d: int, k: int, seed: int) -> Tensor:
    draw = torch.randn(d, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(draw).Q
    return basis


def with_zero_deltas(stack: StackTensors, layer: int) -> StackTensors:
    """`stack`, whose B is zero in one layer."""
    zeros = {
        name: torch.zeros_like(tensor)
        for name, tensor in stack.tensors.items()
        if f".layers.{layer}." in name and name.endswith(".B")
    }
    return StackTensors(stack.config, stack.rounds, {**stack.tensors, **zeros})


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "down_proj"])
def test_subspaces_are_the_leading_singular_vectors_of_the_delta_matrix(projection: str) -> None:
    U, _, Vh = torch.linalg.svd(dense(STACK, 1, projection))
    write, read = write_subspace(STACK, 1, projection, 5), read_subspace(STACK, 1, projection, 5)
    torch.testing.assert_close(write @ write.T, U[:, :5] @ U[:, :5].T)
    torch.testing.assert_close(read @ read.T, Vh[:5].T @ Vh[:5])


def test_a_subspace_has_no_more_directions_than_the_delta_matrix() -> None:
    assert write_subspace(STACK, 0, "q_proj", 40).shape == (32, 12)
    assert write_subspace(with_zero_deltas(STACK, 0), 0, "q_proj").shape == (32, 0)


def test_the_spectrum_is_that_of_the_delta_matrices_averaged_over_the_layers() -> None:
    spectrum = singular_spectrum(STACK)
    assert list(spectrum) == list(STACK.config.projections)
    for projection, values in spectrum.items():
        plain = [torch.linalg.svdvals(dense(STACK, layer, projection))[:12] for layer in range(2)]
        torch.testing.assert_close(values, sum(S / S[0] for S in plain) / 2)


def test_a_delta_that_is_zero_counts_as_zeros_in_the_spectrum() -> None:
    spectrum = singular_spectrum(with_zero_deltas(STACK, 0))
    S = torch.linalg.svdvals(dense(STACK, 1, "q_proj"))[:12]
    torch.testing.assert_close(spectrum["q_proj"], S / S[0] / 2)


def test_the_mean_squared_cosine_is_that_of_the_principal_angles() -> None:
    axes = torch.eye(6, dtype=torch.float64)
    turned = torch.stack([math.cos(0.3) * axes[0] + math.sin(0.3) * axes[4], axes[5]], dim=1)
    expected = math.cos(0.3) ** 2 / 2  # angles 0.3 and a right one
    assert mean_squared_cosine(axes[:, :2], turned) == pytest.approx(expected)
    assert mean_squared_cosine(turned, axes[:, :4]) == pytest.approx(expected)
    assert mean_squared_cosine(axes[:, :2], axes[:, :5]) == pytest.approx(1.0)
    assert mean_squared_cosine(axes[:, :2], axes[:, 2:5]) == 0.0


def test_it_does_not_depend_on_the_bases_chosen() -> None:
    a, b = random_basis(20, 4, 0), random_basis(20, 6, 1)
    turned = a @ random_basis(4, 4, 2)
    assert mean_squared_cosine(turned, b) == pytest.approx(mean_squared_cosine(a, b))


def test_a_subspace_without_directions_has_no_angle() -> None:
    with pytest.raises(ValueError, match="without directions"):
        mean_squared_cosine(torch.zeros(5, 0), torch.eye(5))


@pytest.mark.parametrize(("p", "q"), [(4, 4), (3, 8)])
def test_random_subspaces_overlap_as_expected(p: int, q: int) -> None:
    found = [
        mean_squared_cosine(random_basis(24, p, 2 * i), random_basis(24, q, 2 * i + 1)) for i in range(400)
    ]
    assert sum(found) / len(found) == pytest.approx(expected_squared_cosine(24, p, q), rel=0.05)


def test_overlaps_average_over_what_both_stacks_correct() -> None:
    narrow = random_stack(DIMS, 2, config=stack_config(projections=("q_proj", "v_proj")))
    found = overlaps({"chat": STACK, "code": narrow}, write_subspace, 4)
    places = [(layer, projection) for layer in range(2) for projection in ("q_proj", "v_proj")]
    plain = [
        mean_squared_cosine(write_subspace(STACK, *at, 4), write_subspace(narrow, *at, 4)) for at in places
    ]
    assert list(found) == [("chat", "code")]
    assert found["chat", "code"].cosine == pytest.approx(sum(plain) / 4)
    assert found["chat", "code"].random == pytest.approx((4 / 32 + 4 / 16) / 2)


def test_a_stack_overlaps_wholly_with_itself_and_read_and_write_are_told_apart() -> None:
    other = random_stack(DIMS, seed=9, rounds=2)
    reader = {
        name: STACK.tensors[name] if name.endswith(".A") else other.tensors[name] for name in other.tensors
    }
    stacks = {"a": STACK, "b": STACK, "reader": StackTensors(STACK.config, 2, reader)}
    write, read = overlaps(stacks, write_subspace, 40), overlaps(stacks, read_subspace, 40)
    assert write["a", "b"].cosine == pytest.approx(1.0)
    assert read["a", "b"].cosine == pytest.approx(1.0)
    assert read["a", "reader"].cosine == pytest.approx(1.0)
    assert write["a", "reader"].cosine < 0.9


def test_deltas_that_are_zero_and_pairs_with_nothing_in_common_are_left_out() -> None:
    q, v = (random_stack(DIMS, 1, config=stack_config(projections=(p,))) for p in ("q_proj", "v_proj"))
    assert overlaps({"q": q, "v": v}, write_subspace) == {}
    half = overlaps({"a": STACK, "b": with_zero_deltas(STACK, 0)}, read_subspace)
    assert half["a", "b"].cosine == pytest.approx(1.0)
