"""One round: what helps is kept, what never helps or diverges is not, and what stops goes on as it was."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.layers.packed_stack import StackTensors
from tests.tiny import bank_of, random_stack
from tests.training.examples import example, learnable_examples
from tests.training.forty_steps import StopAfter
from tests.training.workshop import CONFIG, task_of, train, workshop_of
from training.data.encoding import Example
from training.recipe.recipe import DomainRecipe, Recipe
from training.rounds.gating import Gating
from training.rounds.inner_loop import train_round
from training.rounds.objective import mean_nll
from training.rounds.task import RoundResult, RoundTask
from training.runs import checkpoint
from training.runs.log import RunLog, canonical
from training.runs.signals import Interrupted


def selection_under(result: RoundResult, base: BaseModel) -> float:
    tensors = {f"rounds.0.{n}": t for n, t in (result.tensors or {}).items()}
    bank = bank_of({"new": StackTensors(CONFIG, 1, tensors)})
    hooks = workshop_of(base).hooks
    return mean_nll(base.model, hooks, learnable_examples(6, seed=1), [bank.bind([{"new": 1.0}])])


def test_a_round_learns_and_its_snapshot_is_the_best_evaluation(tiny_base: BaseModel, tmp_path: Path) -> None:
    result = train(tiny_base, tmp_path)
    assert result.best < result.baseline - 0.5
    assert result.best == min(h["val_loss"] for h in result.history)
    assert [h["step"] for h in result.history] == [8, 16, 24]
    assert result.stopped == "all steps done"
    assert selection_under(result, tiny_base) == pytest.approx(result.best, abs=1e-4)


def test_the_base_is_untouched_and_nothing_stays_composed(tiny_base: BaseModel, tmp_path: Path) -> None:
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = tiny_base.model(ids, use_cache=False).logits
    train(tiny_base, tmp_path, steps=2, gradient_checkpointing=True)
    with torch.no_grad():
        assert torch.equal(tiny_base.model(ids, use_cache=False).logits, before)
    assert all(p.grad is None for p in tiny_base.model.parameters())
    assert not any(module.training for module in tiny_base.model.modules())


def test_a_round_learns_on_top_of_a_frozen_stack_which_stays_as_it_is(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    stack = random_stack(tiny_base.identity.dims, 5, size=0.2)
    before = {name: tensor.clone() for name, tensor in stack.tensors.items()}
    result = train(tiny_base, tmp_path, frozen=[stack])
    assert result.best < result.baseline - 0.5
    for name, tensor in stack.tensors.items():
        assert torch.equal(tensor, before[name]), name


def test_the_same_seed_gives_the_same_tensors_and_another_one_others(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    results = [
        train(tiny_base, tmp_path / str(i), steps=4, eval_every=4, seed=seed)
        for i, seed in enumerate((3, 3, 4))
    ]
    first, again, other = ((r.tensors or {})["layers.0.q_proj.A"] for r in results)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- how a step is split -------------------------------------------------------------------------


def weights_after(base: BaseModel, checkpoints: Path, **options: Any) -> dict[str, Tensor]:
    """What three steps make of a round, without noise."""
    result = train(base, checkpoints, gate_noise=False, steps=3, eval_every=3, **options)
    assert result.tensors is not None
    return dict(result.tensors)


@pytest.mark.parametrize("split", [(4, 2), (2, 4), (1, 8)])
def test_batch_and_accumulation_split_a_step_without_changing_it(
    tiny_base: BaseModel, tmp_path: Path, split: tuple[int, int]
) -> None:
    # Three epochs' worth of examples of different lengths: every step sees a part of them.
    examples = [
        dataclasses.replace(e, response=e.response[: 2 + i % 7]) for i, e in enumerate(learnable_examples(24))
    ]
    whole = weights_after(tiny_base, tmp_path / "whole", train=examples, batch_size=8, clip=1e9)
    batch, accumulation = split
    parts = weights_after(
        tiny_base, tmp_path / "parts", train=examples, batch_size=batch, accumulation=accumulation, clip=1e9
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-5, rtol=1e-3, msg=name)


def test_packing_changes_no_step(tiny_base: BaseModel, tmp_path: Path) -> None:
    examples = learnable_examples(8)
    plain = weights_after(tiny_base, tmp_path / "plain", train=examples, batch_size=8, clip=1e9)
    packed = weights_after(
        tiny_base, tmp_path / "packed", train=examples, batch_size=8, clip=1e9, packing=True
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(packed[name], tensor, atol=2e-5, rtol=1e-3, msg=name)


def test_gradient_checkpointing_changes_no_step(tiny_base: BaseModel, tmp_path: Path) -> None:
    plain = train(tiny_base, tmp_path / "plain", steps=3, eval_every=3)
    recomputed = train(tiny_base, tmp_path / "again", steps=3, eval_every=3, gradient_checkpointing=True)
    assert plain.tensors is not None
    for name, tensor in plain.tensors.items():
        assert torch.equal((recomputed.tensors or {})[name], tensor), name


# --- what is not kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e8, 1e30])
def test_a_round_that_diverges_leaves_nothing_to_freeze_and_stops(
    tiny_base: BaseModel, tmp_path: Path, rate: float
) -> None:
    result = train(tiny_base, tmp_path, learning_rate=rate, warmup_steps=0, eval_every=4)
    assert result.tensors is None
    assert result.best == result.baseline
    assert len(result.history) <= 1
    assert result.stopped in ("the training loss is not finite", "the selection loss spiked")


def sampled_from(base: BaseModel, count: int, seed: int) -> list[Example]:
    """Random prompts, answered by the base itself: what no stack can know better than the base."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (count, 8), generator=random)
    with torch.no_grad():
        for _ in range(12):
            probabilities = base.model(ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=random)], dim=1)
    return [example(row[:8], row[8:], f"{seed}-{i}") for i, row in enumerate(ids.tolist())]


@pytest.mark.parametrize("rate", [1e-3, 5e-3])
@pytest.mark.parametrize("seed", [0, 1])
def test_pure_noise_gains_less_than_what_a_round_must_to_be_frozen(
    tiny_base: BaseModel, tmp_path: Path, rate: float, seed: int
) -> None:
    task = dataclasses.replace(
        task_of(eval_every=4, learning_rate=rate, seed=seed),
        train=sampled_from(tiny_base, 32, seed),
        selection=sampled_from(tiny_base, 64, 100 + seed),
    )
    result = train_round(workshop_of(tiny_base), task, tmp_path)
    assert len(result.history) >= 4
    assert result.baseline - result.best < Recipe("any", (DomainRecipe("noise", "none"),)).min_gain


def test_a_round_that_never_helps_leaves_nothing_and_stops_when_its_patience_ends(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    result = train(tiny_base, tmp_path, learning_rate=1e-30, weight_decay=0.0, eval_every=1, patience=3)
    assert result.tensors is None
    assert [h["val_loss"] for h in result.history] == [result.baseline] * 3


def test_a_spike_stops_the_round_and_the_snapshot_before_it_stays(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([2.0, 1.5, 1.59, 1.61, 1.0])
    monkeypatch.setattr("training.rounds.training.mean_nll", lambda *_, **__: next(values))
    result = train(tiny_base, tmp_path, eval_every=1)
    assert [h["val_loss"] for h in result.history] == [1.5, 1.59, 1.61]
    assert (result.best, result.baseline, result.stopped) == (1.5, 2.0, "the selection loss spiked")
    assert result.tensors is not None


def test_nan_in_an_evaluation_loses_to_everything(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([2.0, 1.5, math.nan, 1.0])
    monkeypatch.setattr("training.rounds.training.mean_nll", lambda *_, **__: next(values))
    result = train(tiny_base, tmp_path, eval_every=1)
    assert result.best == 1.5
    assert len(result.history) == 2


# --- stop and go on ------------------------------------------------------------------------------


def run(base: BaseModel, directory: Path, task: RoundTask, *, stop_after: int | None = None) -> RoundResult:
    """Train in `directory` as a run does; asked to stop after so many steps when given."""
    directory.mkdir(exist_ok=True)
    with RunLog(directory) as log:
        stop: Any = StopAfter(stop_after)
        workshop = dataclasses.replace(workshop_of(base, log), stop=stop)
        return train_round(workshop, task, directory / "checkpoints")


def final_state(directory: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    found = checkpoint.load(directory / "checkpoints" / f"step-{step:06d}")
    assert found is not None
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    state = {**found.state, "round": {k: v for k, v in found.state["round"].items() if k != "log_position"}}
    return found.tensors, state, [canonical(line) for line in lines]


def test_a_checkpoint_of_another_version_is_refused(tiny_base: BaseModel, tmp_path: Path) -> None:
    task, checkpoints = task_of(steps=4), tmp_path / "run" / "checkpoints"
    with pytest.raises(Interrupted):
        run(tiny_base, tmp_path / "run", task, stop_after=1)
    found = checkpoint.latest(checkpoints)
    assert found is not None
    state = {**found.state, "round": {**found.state["round"], "once": True}}
    checkpoint.save(checkpoints / "step-000002", found.tensors, state)
    with pytest.raises(ConfigError, match="round 1 was written by another version of the trainer"):
        run(tiny_base, tmp_path / "run", task)


@pytest.mark.parametrize(
    ("stop_after", "options"),
    [(1, {}), (5, {"dropout": 0.3, "gate_learning_rate": 1e-2}), (8, {}), (11, {})],
)
def test_a_stopped_round_goes_on_to_the_same_bits(
    tiny_base: BaseModel, tmp_path: Path, stop_after: int, options: dict[str, Any]
) -> None:
    task = task_of(steps=12, eval_every=4, checkpoint_every=3, accumulation=2, batch_size=3, **options)
    task = dataclasses.replace(task, gating=Gating(init=0.5, annealed=True, soft=0.5))
    straight = run(tiny_base, tmp_path / "straight", task)
    rng_after = torch.get_rng_state()
    with pytest.raises(Interrupted, match=f"step {stop_after}"):
        run(tiny_base, tmp_path / "stopped", task, stop_after=stop_after)
    torch.manual_seed(99)  # nothing hangs on what a process drew before
    resumed = run(tiny_base, tmp_path / "stopped", task)
    assert torch.equal(torch.get_rng_state(), rng_after)
    assert resumed.history == straight.history
    for name, tensor in (straight.tensors or {}).items():
        assert torch.equal((resumed.tensors or {})[name], tensor), name
    expected, found = final_state(tmp_path / "straight", 12), final_state(tmp_path / "stopped", 12)
    assert found[0].keys() == expected[0].keys()
    for name, tensor in expected[0].items():
        assert torch.equal(found[0][name], tensor), name
    assert found[1:] == expected[1:]


def squares(parameters: Iterable[Tensor], weight: float) -> Tensor:
    return weight * torch.stack([p.square().sum() for p in parameters]).sum()


def test_a_penalty_is_part_of_the_loss_and_given_weights_are_where_a_round_starts(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    first = train(tiny_base, tmp_path / "first")
    assert first.tensors is not None
    held = dataclasses.replace(task_of(steps=2, eval_every=2), initial=first.tensors)
    went_on = train_round(workshop_of(tiny_base), held, tmp_path / "second")
    assert went_on.baseline == pytest.approx(first.best, abs=1e-5)
    pulled = dataclasses.replace(held, penalty=lambda active: squares(active.up.values(), 1e6))
    result = train_round(workshop_of(tiny_base), pulled, tmp_path / "third")
    assert result.history[-1]["val_loss"] > went_on.history[-1]["val_loss"]
