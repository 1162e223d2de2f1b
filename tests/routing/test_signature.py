"""A signature measures what its definition says, and its probabilities and the gap mean what they say."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from brainstacks.config import SignatureConfig
from brainstacks.errors import InvalidArtifact
from brainstacks.routing.signature import (
    STEEPNESS,
    THRESHOLD,
    Signature,
    Signatures,
    gaps,
    pooled,
    probabilities,
)

WIDTH = 6
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signature(directions: int, seed: int = 0) -> Signature:
    return Signature(
        SignatureConfig(WIDTH, directions, 12, "none"),
        centre=0.1 * normal(2, WIDTH, seed=seed),
        mean=0.3 * normal(2, WIDTH, seed=seed + 1),
        spread=0.2 * normal(directions, 2, WIDTH, seed=seed + 2),
        distances=torch.tensor([1.1, 0.2]),
    )


def plain_score(one: Signature, tokens: Tensor) -> float:
    """The module's formulas, of the tokens [T, d] of one prompt under one signature."""
    each = [(x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) for x in tokens]
    y = []
    for i, vector in enumerate((sum(each) / len(each), each[-1])):
        there = vector - one.centre[i]
        y.append(there / there.norm() - one.mean[i])
    offset = torch.cat(y)
    squared = float(offset @ offset) - sum(float(s.flatten() @ offset) ** 2 for s in one.spread)
    mu, sigma = one.distances.tolist()
    return float((math.sqrt(squared) - mu) / sigma)


def test_scores_are_what_the_formulas_give_whatever_is_beside_a_prompt_or_a_signature() -> None:
    known = {"a": signature(2), "b": signature(3, seed=10), "c": signature(1, seed=20)}
    prompts = [normal(length, WIDTH, seed=length) for length in (1, 4, 9)]
    features = torch.full((3, 9, WIDTH), 1e3)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        features[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = True
    found = Signatures(known, CPU).scores(features, mask)
    expected = [[plain_score(one, prompt) for one in known.values()] for prompt in prompts]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_a_prompt_is_of_the_nearest_domain_where_it_is_near_enough() -> None:
    near, edge, far = -0.5, THRESHOLD, THRESHOLD + 3
    found = probabilities(
        torch.tensor([[near, far, far], [edge, far, far], [far, far, far], [near, near, far]])
    )
    assert found[0, 0] > 0.95
    assert found[0, 1:].max() < 0.01
    assert found[1, 0] == pytest.approx(0.5, abs=0.01)
    assert found[2].max() < 0.01
    assert found[3, :2].tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_probabilities_of_many_are_those_of_the_formula() -> None:
    scores = 3 * normal(5, 7)
    for row, found in zip(scores.tolist(), probabilities(scores).tolist(), strict=True):
        for i, p in enumerate(found):
            other = min(s for j, s in enumerate(row) if j != i)
            expected = 1 / (1 + math.exp(-STEEPNESS * (THRESHOLD - row[i])))
            expected /= 1 + math.exp(-STEEPNESS * (other - row[i]))
            assert p == pytest.approx(expected, abs=1e-5)


def test_alone_a_domain_has_its_threshold() -> None:
    assert probabilities(torch.tensor([[THRESHOLD], [-1.0]])).flatten().tolist() == pytest.approx(
        [0.5, 1 / (1 + math.exp(-STEEPNESS * (THRESHOLD + 1)))]
    )


def test_the_gap_grows_with_the_distance_to_the_nearest_domain() -> None:
    found = gaps(torch.tensor([[0.0, 9.0], [THRESHOLD, 9.0], [9.0, 8.0]]))
    assert found[0] < 0.05 < found[1] < 0.95 < found[2]


def test_padding_changes_nothing() -> None:
    features = normal(1, 5, WIDTH)
    longer = torch.cat([features, torch.full((1, 3, WIDTH), 7.0)], dim=1)
    mask = torch.ones(1, 5, dtype=torch.bool)
    padded = torch.cat([mask, torch.zeros(1, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(pooled(longer, padded), pooled(features, mask))


def test_a_spread_that_takes_out_more_than_there_is_leaves_no_distance() -> None:
    """A file may claim anything: no score may be what is no number."""
    hostile = dataclasses.replace(signature(2), spread=torch.full((2, 2, WIDTH), 16384.0))
    scores = Signatures({"a": hostile}, CPU).scores(normal(2, 3, WIDTH), torch.ones(2, 3, dtype=torch.bool))
    assert scores.isfinite().all()


def test_a_standard_deviation_that_is_none_is_refused() -> None:
    sound = signature(1)
    for sigma in (0.0, -1.0, math.nan):
        tensors = {**sound.tensors(), "signature.distances": torch.tensor([1.0, sigma])}
        with pytest.raises(InvalidArtifact, match="standard deviation"):
            Signature.of(sound.config, tensors)
    assert Signature.of(sound.config, sound.tensors()).distances is sound.distances
