"""Outcomes are measured over every combination, and a run that was killed goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from tests.tiny import bank_of, plain_logits, random_stack, tiny_model
from tests.training.examples import random_examples
from training import outcomes as module
from training.composition import Composed
from training.outcomes import (
    combinations,
    fewest_within,
    greedy_choice,
    measure,
    measure_all,
    read_outcomes,
)

DOMAINS = ("a", "b", "c")


@pytest.fixture
def stacks(tiny_base: BaseModel) -> dict[str, StackTensors]:
    return {d: random_stack(tiny_base.identity.dims, i, size=0.3) for i, d in enumerate(DOMAINS)}


@pytest.fixture
def composed(tiny_base: BaseModel, stacks: dict[str, StackTensors]) -> Composed:
    hooks = CompositionHooks(tiny_base.sites)
    hooks.attach()
    digests = {domain: str(i) * 64 for i, domain in enumerate(DOMAINS)}
    return Composed(tiny_base, tiny_base.chat_tokenizer(), hooks, bank_of(stacks), digests)


# --- the decisions -------------------------------------------------------------------------------


def test_all_subsets_are_measured_the_base_first() -> None:
    found = combinations(DOMAINS)
    assert found[0] == ()
    assert len(found) == len(set(found)) == 8
    assert combinations(()) == [()]


def test_greedy_adds_what_helps_most_and_can_miss_a_pair() -> None:
    losses = {"": 3.0, "a": 2.5, "b": 2.9, "c": 2.9, "a+b": 2.4, "a+c": 2.495, "b+c": 1.0, "a+b+c": 2.395}
    assert greedy_choice(losses, DOMAINS, 0.01) == "a+b"
    assert greedy_choice(losses, DOMAINS, 0.2) == "a"
    assert greedy_choice(losses, DOMAINS, 0.5) == ""
    assert greedy_choice(losses, DOMAINS, 0.001) == "a+b+c"


def test_the_fewest_domains_within_the_least_gain_of_the_best() -> None:
    losses = {"": 3.0, "a": 2.5, "b": 2.45, "a+b": 2.44}
    assert fewest_within(losses, 0.0) == "a+b"
    assert fewest_within(losses, 0.02) == "b"
    assert fewest_within(losses, 0.1) == "b", "of equally few the better one"
    assert fewest_within(losses, 1.0) == ""


# --- measuring -----------------------------------------------------------------------------------


def test_losses_are_the_answers_nll_under_each_combination(
    composed: Composed, stacks: dict[str, StackTensors]
) -> None:
    (one,) = random_examples(1, seed=3)
    outcome = measure(composed, "a", one, (1.0, 0.5), 0.01)
    ids = [*one.prompt, *one.response]
    assert set(outcome.losses) == {"+".join(c) for c in combinations(DOMAINS)}
    for name, loss in outcome.losses.items():
        chosen = [(stacks[d], 1.0) for d in name.split("+") if d]
        logprobs = plain_logits(tiny_model(), ids, chosen).log_softmax(-1)
        nll = -sum(float(logprobs[len(one.prompt) - 1 + i, t]) for i, t in enumerate(one.response))
        assert loss == pytest.approx(nll / len(one.response), abs=1e-4), name
    assert outcome.best == min(outcome.losses, key=lambda name: outcome.losses[name])


def test_the_weights_found_have_the_loss_that_is_told_and_no_worse_than_on_or_off(composed: Composed) -> None:
    for one in random_examples(4, seed=5):
        outcome = measure(composed, "a", one, (1.0, 0.7, 0.4), 0.01)
        nll = float(composed.nll([one], [outcome.weights])[0]) / len(one.response)
        assert outcome.loss == pytest.approx(nll, abs=1e-4)
        assert outcome.loss <= min(outcome.losses.values()) + 0.01 + 1e-6
        assert set(outcome.weights) == set(DOMAINS)
        assert set(outcome.weights.values()) <= {0.0, 1.0, 0.7, 0.4}


def test_rows_with_different_weights_share_one_batch(composed: Composed) -> None:
    examples = random_examples(3, seed=7)
    weights = [{"a": 1.0}, {}, {"b": 0.5, "c": 1.0}]
    together = composed.nll(examples, weights)
    for i, one in enumerate(examples):
        assert float(together[i]) == pytest.approx(float(composed.nll([one], [weights[i]])[0]), abs=1e-3)


# --- resuming ------------------------------------------------------------------------------------


def run(
    composed: Composed, path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[str]]:
    """(ids of all outcomes, ids of those that were measured now)."""
    fresh: list[str] = []

    def counting(*args: object, **kwargs: object) -> object:
        outcome = measure(*args, **kwargs)  # type: ignore[arg-type]
        fresh.append(outcome.id)
        return outcome

    monkeypatch.setattr(module, "measure", counting)
    pairs = [("a", e) for e in random_examples(count)]
    found = measure_all(composed, pairs, path, (1.0,), 0.01, report=lambda _: None)
    return [o.id for o in found], fresh


def test_what_was_measured_is_not_measured_again(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "outcomes.jsonl"
    assert run(composed, path, 2, monkeypatch) == (["e0", "e1"], ["e0", "e1"])
    assert run(composed, path, 3, monkeypatch) == (["e0", "e1", "e2"], ["e2"])
    assert run(composed, path, 3, monkeypatch) == (["e0", "e1", "e2"], [])


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_that_a_kill_cut_off_is_measured_again_and_spoils_no_other(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    path = tmp_path / "outcomes.jsonl"
    run(composed, path, 2, monkeypatch)
    path.write_bytes(path.read_bytes()[:-cut])
    _, fresh = run(composed, path, 4, monkeypatch)
    assert fresh == (["e2", "e3"] if cut == 1 else ["e1", "e2", "e3"])
    assert run(composed, path, 4, monkeypatch) == (["e0", "e1", "e2", "e3"], [])


def test_an_outcome_survives_the_file(composed: Composed, tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    (one,) = random_examples(1)
    (made,) = measure_all(composed, [("b", one)], path, (1.0, 0.5), 0.01)
    header = json.loads(path.read_text().splitlines()[0])
    assert read_outcomes(path, header) == {"b/e0": made}


def test_other_stacks_or_settings_are_refused(composed: Composed, tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    pairs = [("a", e) for e in random_examples(1)]
    measure_all(composed, pairs, path, (1.0,), 0.01)
    with pytest.raises(ConfigError, match=r"outcomes\.jsonl was measured with other stacks or settings"):
        measure_all(composed, pairs, path, (1.0, 0.5), 0.01)


def test_a_file_whose_header_was_cut_off_is_refused_by_name(composed: Composed, tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_text('{"stacks": {"a"')
    with pytest.raises(ConfigError, match=r"outcomes\.jsonl"):
        measure_all(composed, [("a", e) for e in random_examples(1)], path, (1.0,), 0.01)
