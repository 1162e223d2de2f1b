"""The forgetting matrix: what its figures mean, and which stacks each of its losses is measured with."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from brainstacks.errors import ConfigError
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.projections import find_sites, projection_dims
from tests.tiny import bank_of, random_stack, tiny_model
from tests.training.examples import plain_nll, random_examples
from training.curriculum.forgetting import ForgettingMatrix, Losses, measure_row
from training.data.encoding import Example

DOMAINS = ("chat", "code", "math")
DIMS = projection_dims(find_sites(tiny_model()))
STACKS = {d: random_stack(DIMS, i, rounds=1 + i % 2, size=0.3) for i, d in enumerate(DOMAINS)}
EXAMPLES = {d: random_examples(5, seed=i) for i, d in enumerate(DOMAINS)}


def losses(value: float) -> Losses:
    """Losses of which only the ungated one varies."""
    return Losses(1.0, value, 9.0)


def matrix(*rows: list[float]) -> ForgettingMatrix:
    """From ungated losses L[t][d], d <= t."""
    found = ForgettingMatrix()
    for domain, row in zip(DOMAINS, rows, strict=False):
        found = found.add(domain, {d: losses(v) for d, v in zip(DOMAINS, row, strict=False)})
    return found


# --- figures -------------------------------------------------------------------------------------


def test_average_transfer_and_forgetting_by_hand() -> None:
    found = matrix([2.0], [1.8, 3.0], [2.5, 3.4, 1.0])
    assert found.average() == pytest.approx((2.5 + 3.4 + 1.0) / 3)
    assert found.backward_transfer() == pytest.approx(((2.0 - 2.5) + (3.0 - 3.4)) / 2)
    assert found.forgetting() == pytest.approx(((2.5 - 1.8) + (3.4 - 3.0)) / 2), "since each was at its best"


def test_backward_transfer_is_positive_where_later_stacks_help() -> None:
    found = matrix([2.0], [1.5, 3.0])
    assert found.backward_transfer() == pytest.approx(0.5)
    assert found.forgetting() == pytest.approx(-0.5)
    assert found.backward_transfer("prefix") == found.forgetting("prefix") == 0.0


def test_a_single_domain_forgets_nothing() -> None:
    found = matrix([2.0])
    assert (found.average(), found.backward_transfer(), found.forgetting()) == (2.0, 0.0, 0.0)


def test_it_shows_every_ungated_loss_and_of_each_kind_the_last_ones_and_the_figures() -> None:
    found = matrix([2.0], [1.8, 3.0], [2.5, 3.4, 1.0])
    console = Console(width=160, file=io.StringIO(), record=True)
    found.show(console)
    text = console.export_text()
    rows = [line.split() for line in text.replace("│", " ").splitlines()]
    assert "No prefix loss has changed by a bit" in text
    assert ["all,", "after", "code", "1.8000", "3.0000"] in rows
    assert ["ungated", "2.5000", "3.4000", "1.0000", "2.3000", "-0.4500", "+0.5500"] in rows
    assert ["prefix", *["1.0000"] * 4, "+0.0000", "+0.0000"] in rows
    assert ["isolated", *["9.0000"] * 4, "+0.0000", "+0.0000"] in rows
    assert found.figures()["ungated"]["average"] == found.average("ungated")
    assert found.to_dict()["figures"] == found.figures()


def test_a_row_covers_the_domains_so_far_and_no_other() -> None:
    with pytest.raises(ConfigError, match="must cover chat, code"):
        matrix([2.0]).add("code", {"code": losses(1.0)})


def test_a_prefix_loss_that_moves_by_one_bit_is_noticed() -> None:
    first = ForgettingMatrix().add("chat", {"chat": Losses(0.1 + 0.2, 1.0, 1.0)})
    same = first.add("code", {"chat": Losses(0.1 + 0.2, 2.0, 1.0), "code": losses(1.0)})
    moved = first.add("code", {"chat": Losses(0.3, 2.0, 1.0), "code": losses(1.0)})
    assert same.changed() == ()
    assert moved.changed() == ("chat",)


def test_json_gives_back_the_very_floats() -> None:
    found = matrix([0.1 + 0.2], [1 / 3, 2 / 7])
    assert ForgettingMatrix.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# --- measuring -----------------------------------------------------------------------------------


def mean_nll(examples: list[Example], on: tuple[str, ...]) -> float:
    """Token-weighted mean of the plain loss, one example at a time."""
    total = sum(plain_nll(one, [(STACKS[d], 1.0) for d in on]) for one in examples)
    return total / sum(len(one.response) for one in examples)


def test_each_loss_is_measured_with_its_stacks_on_and_prefixes_stay_to_the_bit() -> None:
    model = tiny_model()
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    bank = StackBank(torch.device("cpu"), torch.float32)
    found = ForgettingMatrix()
    for t, domain in enumerate(DOMAINS, 1):
        bank.add(domain, STACKS[domain])
        found = found.add(domain, measure_row(model, hooks, bank, DOMAINS[:t], EXAMPLES))
    assert found.changed() == ()
    for d, domain in enumerate(DOMAINS, 1):
        last = found.rows[-1][domain]
        expected = [mean_nll(EXAMPLES[domain], on) for on in (DOMAINS[:d], DOMAINS, (domain,))]
        assert [last.prefix, last.ungated, last.isolated] == pytest.approx(expected, abs=1e-4), domain
    assert found.rows[-1]["math"].prefix == found.rows[-1]["math"].ungated
    assert found.rows[-1]["chat"].prefix == found.rows[-1]["chat"].isolated
    assert found.rows[0]["chat"].ungated != found.rows[-1]["chat"].ungated


def test_a_row_does_not_depend_on_stacks_that_are_loaded_and_not_named() -> None:
    model = tiny_model()
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    alone = measure_row(model, hooks, bank_of({"chat": STACKS["chat"]}), ["chat"], EXAMPLES)
    assert measure_row(model, hooks, bank_of(STACKS), ["chat"], EXAMPLES) == alone
