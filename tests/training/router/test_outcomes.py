"""Outcomes are measured over every combination, and only what no file holds already is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from tests.tiny import bank_of, random_stack
from tests.training.examples import plain_nll, random_examples
from training.data.batches import TOKENS
from training.data.encoding import Example
from training.router import outcomes
from training.router.outcomes import AT_ONCE, combinations, fewest_within, greedy_choice, measure, measure_all
from training.router.stacked_base import StackedBase, Weights
from training.runs.signals import Interrupted, StopRequest

DOMAINS = ("a", "b", "c")
LEVELS = (1.0, 0.7, 0.4)


@dataclass(frozen=True)
class Counting(StackedBase):
    """Keeps every row that it measures."""

    rows: list[tuple[str, Weights]] = field(default_factory=list)

    def losses(
        self, examples: Sequence[Example], weights: Sequence[Weights], tokens: int = TOKENS
    ) -> list[float]:
        self.rows.extend((e.id, dict(w)) for e, w in zip(examples, weights, strict=True))
        return super().losses(examples, weights, tokens)


def stacked_of(base: BaseModel, **seeds: int) -> Counting:
    """Domain -> seed of its stack, which is its digest too."""
    stacks = {domain: random_stack(base.identity.dims, seed, size=0.3) for domain, seed in seeds.items()}
    hooks = CompositionHooks(base.sites)
    hooks.attach()
    digests = {domain: f"{seed:064}" for domain, seed in seeds.items()}
    return Counting(base, base.chat_tokenizer(), hooks, bank_of(stacks), digests)


@pytest.fixture
def stacked(tiny_base: BaseModel) -> Counting:
    return stacked_of(tiny_base, a=0, b=1, c=2)


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


def test_losses_are_the_answers_nll_under_each_combination(stacked: Counting) -> None:
    examples = random_examples(3, seed=3)
    stacks = {d: random_stack(stacked.base.identity.dims, i, size=0.3) for i, d in enumerate(DOMAINS)}
    for one, outcome in zip(
        examples, measure(stacked, [("a", e) for e in examples], (1.0, 0.5), 0.01), strict=True
    ):
        assert set(outcome.losses) == {"+".join(c) for c in combinations(DOMAINS)}
        for name, loss in outcome.losses.items():
            chosen = [(stacks[d], 1.0) for d in name.split("+") if d]
            assert loss == pytest.approx(plain_nll(one, chosen) / len(one.response), abs=1e-4), name


def slowly(stacked: StackedBase, one: Example, min_gain: float) -> tuple[Weights, float]:
    """The search, one row at a time, remembering nothing."""

    def nll(weights: Weights) -> float:
        return float(stacked.nll([one], [weights])[0]) / len(one.response)

    subsets = {"+".join(c): {d: float(d in c) for d in DOMAINS} for c in combinations(DOMAINS)}
    losses = {name: nll(weights) for name, weights in subsets.items()}
    best: Weights = subsets[fewest_within(losses, min_gain)]
    for _ in range(2):
        options = [{**best, d: level} for d in DOMAINS for level in (0.0, *LEVELS)]
        lowest = min(options, key=nll)
        if nll(best) - nll(lowest) > min_gain:
            best = lowest
    return best, nll(best)


def test_many_examples_at_once_end_where_a_slow_search_of_each_ends(stacked: Counting) -> None:
    examples = random_examples(6, seed=5)
    found = measure(stacked, [("b", e) for e in examples], LEVELS, 0.01)
    assert len({tuple(o.weights.values()) for o in found}) > 1
    for one, outcome in zip(examples, found, strict=True):
        weights, loss = slowly(stacked, one, 0.01)
        assert outcome.weights == weights
        assert outcome.loss == pytest.approx(loss, abs=1e-4)
        assert (outcome.domain, outcome.example) == ("b", one)
        assert outcome.greedy_cost == outcome.losses[outcome.greedy] - min(outcome.losses.values())
        assert outcome.greedy == greedy_choice(outcome.losses, DOMAINS, 0.01)
        assert outcome.oracle == min(outcome.loss, *outcome.losses.values())


def test_no_row_is_measured_twice(stacked: Counting) -> None:
    measure(stacked, [("a", e) for e in random_examples(3)], LEVELS, 0.01)
    rows = [(name, tuple(weights.items())) for name, weights in stacked.rows]
    assert len(rows) == len(set(rows))


def test_a_loss_that_is_no_number_is_refused_with_the_stack_that_does_it(stacked: Counting) -> None:
    sound = random_stack(stacked.base.identity.dims, 1)
    tensors = {name: torch.full_like(tensor, float("nan")) for name, tensor in sound.tensors.items()}
    stacked.bank.remove("b")
    stacked.bank.add("b", StackTensors(sound.config, sound.rounds, tensors))
    with pytest.raises(ConfigError, match="example e0 is nan; alone, b makes it so"):
        measure(stacked, [("a", e) for e in random_examples(1)], LEVELS, 0.01)


# --- measuring once ------------------------------------------------------------------------------


def run(stacked: Counting, path: Path, count: int) -> list[tuple[str, Weights]]:
    """The rows that were measured for `count` outcomes, all of which are right."""
    pairs = [("a", e) for e in random_examples(count)]
    found = measure_all(stacked, pairs, path, LEVELS, 0.01, report=lambda _: None)
    measured = list(stacked.rows)
    for (domain, one), outcome in zip(pairs, found, strict=True):
        (expected,) = measure(stacked, [(domain, one)], LEVELS, 0.01)
        assert outcome.losses == pytest.approx(dict(expected.losses), abs=1e-4)
        assert (outcome.example, outcome.weights) == (one, expected.weights)
    stacked.rows.clear()
    return measured


def test_what_was_measured_is_not_measured_again(stacked: Counting, tmp_path: Path) -> None:
    path = tmp_path / "run" / "outcomes.jsonl"
    assert {name for name, _ in run(stacked, path, 2)} == {"e0", "e1"}
    assert {name for name, _ in run(stacked, path, 3)} == {"e2"}
    assert run(stacked, path, 3) == []


def test_a_run_that_is_killed_keeps_all_but_the_last_group(
    stacked: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pairs = tmp_path / "outcomes.jsonl", [("a", e) for e in random_examples(AT_ONCE + 2)]

    def killed(stacked: Any, group: Any, *settings: Any) -> Any:
        if len(group) < AT_ONCE:
            raise KeyboardInterrupt
        return measure(stacked, group, *settings)

    with monkeypatch.context() as patched:
        patched.setattr(outcomes, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            measure_all(stacked, pairs, path, LEVELS, 0.01, report=lambda _: None)
    stacked.rows.clear()
    last = {f"e{AT_ONCE}", f"e{AT_ONCE + 1}"}
    assert {name for name, _ in run(stacked, path, AT_ONCE + 2)} == last


def test_asked_to_stop_it_keeps_the_group_that_it_measured(stacked: Counting, tmp_path: Path) -> None:
    path, pairs = tmp_path / "outcomes.jsonl", [("a", e) for e in random_examples(AT_ONCE + 2)]
    stop = StopRequest()
    stop.requested = True
    for done in (AT_ONCE, AT_ONCE + 2):  # after the last group too: what follows it takes long
        stacked.rows.clear()
        with pytest.raises(Interrupted, match=f"stopped after {done} of {AT_ONCE + 2} outcomes"):
            measure_all(stacked, pairs, path, LEVELS, 0.01, lambda _: None, stop)
    assert {name for name, _ in stacked.rows} == {f"e{AT_ONCE}", f"e{AT_ONCE + 1}"}


def test_a_domain_more_measures_only_the_combinations_with_it(tiny_base: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    run(stacked_of(tiny_base, a=0, b=1), path, 3)
    rows = run(stacked_of(tiny_base, a=0, b=1, c=2), path, 3)
    hard = [weights for _, weights in rows if set(weights.values()) <= {0.0, 1.0}]
    assert len(hard) == 3 * 4, "of 8 combinations, 4 are new"
    assert all(weights["c"] == 1.0 for weights in hard)
    assert run(stacked_of(tiny_base, a=0, b=1, c=2), path, 3) == []


def test_another_stack_of_a_domain_measures_only_the_combinations_with_it(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    path = tmp_path / "outcomes.jsonl"
    run(stacked_of(tiny_base, a=0, b=1, c=2), path, 3)
    rows = run(stacked_of(tiny_base, a=0, b=7, c=2), path, 3)
    hard = [weights for _, weights in rows if set(weights.values()) <= {0.0, 1.0}]
    assert len(hard) == 3 * 4
    assert all(weights["b"] == 1.0 for weights in hard)


def test_progress_says_what_is_known(tiny_base: BaseModel, tmp_path: Path) -> None:
    path, pairs = tmp_path / "outcomes.jsonl", [("a", e) for e in random_examples(AT_ONCE + 1)]
    lines: list[str] = []
    measure_all(stacked_of(tiny_base, a=0), pairs[:1], path, LEVELS, 0.01, report=lines.append)
    lines.clear()
    both = stacked_of(tiny_base, a=0, b=1)
    measure_all(both, pairs, path, LEVELS, 0.01, report=lines.append)
    (known,) = lines
    assert "0 of 9 examples are measured already; of the others' 36 combinations, 2 are" in known


def test_other_settings_or_another_quantization_are_refused(stacked: Counting, tmp_path: Path) -> None:
    path, pairs = tmp_path / "outcomes.jsonl", [("a", e) for e in random_examples(1)]
    measure_all(stacked, pairs, path, LEVELS, 0.01, report=lambda _: None)
    with pytest.raises(ConfigError, match="another value of levels, min_gain; remove it"):
        measure_all(stacked, pairs, path, (1.0,), 0.02)
