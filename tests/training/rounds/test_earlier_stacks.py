"""What earlier stacks do while another trains: all, none, or a sample that a row keeps."""

from __future__ import annotations

import pytest
import torch

from brainstacks.layers.bank import BoundBank
from brainstacks.layers.projections import find_sites, projection_dims
from tests.tiny import bank_of, random_stack, tiny_model
from training.recipe.settings import EarlierMode
from training.rounds.earlier_stacks import WEIGHTS, EarlierStacks

DIMS = projection_dims(find_sites(tiny_model()))
DOMAINS = ("chat", "code", "math")
BANK = bank_of({d: random_stack(DIMS, i) for i, d in enumerate(DOMAINS)})


def earlier(mode: EarlierMode, seed: int = 0) -> EarlierStacks:
    return EarlierStacks(BANK, DOMAINS, mode, seed)


def delta(stacks: EarlierStacks, rows: list[str]) -> torch.Tensor:
    (source,) = stacks.of(rows)
    x = torch.ones(len(rows), 3, DIMS["q_proj"][0])
    out = torch.zeros(len(rows), 3, DIMS["q_proj"][1])
    for correction in source.corrections(0, 0, x)["q_proj"]:
        out = correction(out)
    return out


def test_none_and_no_domains_add_nothing() -> None:
    assert earlier("none").of(["a"]) == ()
    assert EarlierStacks(BANK, (), "all", 0).of(["a"]) == ()


def test_all_are_on_at_one_for_every_row() -> None:
    expected = BANK.bind([dict.fromkeys(DOMAINS, 1.0)])
    (found,) = earlier("all").of(["a", "b"])
    assert isinstance(found, BoundBank)
    assert torch.equal(found.stacks[0].weights, expected.stacks[0].weights)


def test_a_sample_belongs_to_a_row_not_to_its_batch() -> None:
    stacks = earlier("sampled")
    names = [f"row {i}" for i in range(6)]
    together = delta(stacks, names)
    for i, name in enumerate(names):
        if stacks.sample(name):
            torch.testing.assert_close(delta(stacks, [name])[0], together[i])
        else:
            assert together[i].abs().max() == 0
    assert together[0].shape == (3, DIMS["q_proj"][1])


def test_samples_are_subsets_of_about_half_at_weights_in_range() -> None:
    samples = [earlier("sampled").sample(str(i)) for i in range(400)]
    present = sum(len(s) for s in samples) / 400 / len(DOMAINS)
    assert present == pytest.approx(0.5, abs=0.06)
    weights = [w for s in samples for w in s.values()]
    assert min(weights) >= WEIGHTS[0]
    assert max(weights) <= WEIGHTS[1]
    assert sum(weights) / len(weights) == pytest.approx(sum(WEIGHTS) / 2, abs=0.03)
    assert {tuple(s) for s in samples} >= {(), DOMAINS}


def test_a_seed_of_its_own_gives_other_samples() -> None:
    names = [str(i) for i in range(20)]
    assert [earlier("sampled", 1).sample(n) for n in names] != [
        earlier("sampled", 2).sample(n) for n in names
    ]
    assert [earlier("sampled", 1).sample(n) for n in names] == [
        earlier("sampled", 1).sample(n) for n in names
    ]
