"""Rewards: answers are drawn from the composed model, and what is rewarded becomes likelier."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.config import Applies
from tests.tiny import bank_of, plain_greedy, random_stack, tiny_model
from tests.training.forty_steps import StopAfter
from tests.training.reinforce.stages import grpo, record, stage_of, trained
from tests.training.workshop import workshop_of
from training.data.batches import Batch
from training.data.encoding import Example
from training.recipe.reinforcement import GrpoRecipe
from training.reinforce import grpo as module
from training.reinforce.grpo import RewardTraining, advantages_of, clipped_loss, divergence
from training.reinforce.items import StageRecords
from training.reinforce.rewards import Reward
from training.reinforce.rollouts import draw
from training.reinforce.stage import StageTask
from training.reinforce.stages import train_stage
from training.rounds.earlier_stacks import EarlierStacks
from training.runs.signals import Interrupted


@pytest.fixture(autouse=True)
def rewarding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a random model earns some of: the share of its answer that is ASCII."""

    def score(answer: str, expected: str) -> float:
        return sum(c.isascii() for c in answer) / max(1, len(answer))

    monkeypatch.setattr(module, "REWARDS", {"exact_answer": Reward("answer", "", lambda r: "", score)})


def task_of(base: BaseModel, stage: GrpoRecipe | None = None, **options: Any) -> StageTask:
    every = [record(i, "1") for i in range(10)]
    return stage_of(base, stage or grpo(), StageRecords(every[:6], every[6:]), **options)


def training_of(base: BaseModel, stage: GrpoRecipe | None = None, **options: Any) -> RewardTraining:
    training = RewardTraining(workshop_of(base), task_of(base, stage, **options))
    training.begin()
    training.active.train()
    return training


# --- parts ---------------------------------------------------------------------------------------


def test_advantages_compare_the_answers_of_a_group_and_of_equal_ones_none_has_any() -> None:
    found = advantages_of(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    assert found[0].tolist() == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=1e-4)
    assert found[1].tolist() == [0.0] * 4


def test_a_ratio_counts_up_to_the_clip_and_not_beyond_it() -> None:
    old = torch.zeros(4)
    logprobs = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    losses = clipped_loss(logprobs, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2)
    assert losses.detach().tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8])
    losses.sum().backward()
    assert logprobs.grad is not None
    assert (logprobs.grad != 0).tolist() == [False, True, True, False]


def test_the_divergence_is_none_of_a_policy_to_itself_and_positive_of_any_other() -> None:
    logprobs = torch.tensor([-1.0, -2.0])
    assert divergence(logprobs, logprobs).tolist() == [0.0, 0.0]
    assert (divergence(logprobs, logprobs + torch.tensor([0.5, -0.5])) > 0).all()


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("applies", ["everywhere", "response"])
def test_greedy_answers_are_those_of_the_plain_model_whatever_shares_the_batch(
    tiny_base: BaseModel, applies: str
) -> None:
    config = dataclasses.replace(random_stack(tiny_base.identity.dims, 1).config, applies=applies)  # type: ignore[arg-type]
    stack = dataclasses.replace(random_stack(tiny_base.identity.dims, 3, size=0.2), config=config)
    workshop = workshop_of(tiny_base)
    sources = [bank_of({"a": stack}).bind([{"a": 1.0}])]
    prompts = [list(b"ask"), list(b"a longer question"), [7]]
    found = draw(tiny_base.model, workshop.hooks, sources, prompts, [5, 3, 6], [258], 0.0)
    for prompt, limit, answer in zip(prompts, [5, 3, 6], found, strict=True):
        first = len(prompt) - 1 if applies == "response" else 0
        plain = plain_greedy(tiny_model(), prompt, limit, [(stack, 1.0, first)])
        assert list(answer) == plain


def test_an_answer_ends_with_its_end_token_and_others_go_on(tiny_base: BaseModel) -> None:
    hooks, prompts = workshop_of(tiny_base).hooks, [list(b"ask"), list(b"what")]
    free = draw(tiny_base.model, hooks, [], prompts, [6, 6], [], 0.0)
    end = free[0][2]
    ended = draw(tiny_base.model, hooks, [], prompts, [6, 6], [end], 0.0)
    assert ended[0] == free[0][: free[0].index(end) + 1]
    assert ended[1] == (free[1] if end not in free[1] else free[1][: free[1].index(end) + 1])


def test_draws_follow_the_generator_and_the_temperature(tiny_base: BaseModel) -> None:
    hooks, prompts = workshop_of(tiny_base).hooks, [list(b"ask")] * 8

    def drawn(seed: int, temperature: float = 1.0) -> list[tuple[int, ...]]:
        generator = torch.Generator().manual_seed(seed)
        return draw(tiny_base.model, hooks, [], prompts, [4] * 8, [], temperature, generator)

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 1
    greedy = draw(tiny_base.model, hooks, [], prompts, [4] * 8, [], 0.0)
    assert drawn(1, 1e-4) == greedy


# --- the stage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("applies", ["everywhere", "response"])
def test_what_is_rewarded_becomes_likelier(tiny_base: BaseModel, applies: Applies, tmp_path: Path) -> None:
    task = task_of(tiny_base, grpo(steps=16, group_size=8), applies=applies)
    result = trained(tiny_base, task, tmp_path)
    assert result.tensors is not None
    assert result.after["reward"] > result.before["reward"]


def test_the_gradient_is_that_of_the_formula(tiny_base: BaseModel) -> None:
    """Written out answer by answer: at ratio 1 it is that of -advantage * log p, averaged over its tokens."""
    training = training_of(tiny_base, grpo(batch_size=2), balance_coefficient=0.0)
    training._draw(0)
    kept, examples = dict(training.kept), training._answers()
    training._backward()
    found = {name: p.grad.clone() for name, p in training.active.named_parameters() if p.grad is not None}
    training.active.zero_grad()
    for example, advantage in zip(examples, kept["advantages"], strict=True):
        ids = torch.tensor([[*example.prompt, *example.response]])
        with training.workshop.hooks.composed(training.active):
            training.active.begin(torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool), 1)
            logits = tiny_base.model(ids, use_cache=False).logits[0, len(example.prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(example.response)[:, None])
        (-advantage * chosen.mean() / len(examples)).backward()
    assert found
    assert any(bool(g.any()) for g in found.values())
    for name, parameter in training.active.named_parameters():
        if name in found:
            assert parameter.grad is not None
            assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-6), name


def test_a_forward_with_a_backward_pass_has_no_more_tokens_than_the_recipe_allows_a_round(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_of(tiny_base, grpo(batch_size=2, beta=0.1))
    training._draw(0)
    tokens: list[int] = []
    logprobs = training.logprobs

    def counted(batch: Batch, temperature: float) -> torch.Tensor:
        tokens.append(batch.input_ids.numel())
        return logprobs(batch, temperature)

    monkeypatch.setattr(training, "logprobs", counted)
    training._backward()
    most = 2 * training.task.data.max_tokens
    assert sum(map(len, training._answers())) > most >= max(tokens)


def test_steps_on_the_same_answers_know_the_policy_that_drew_them(tiny_base: BaseModel) -> None:
    training = training_of(tiny_base, grpo(updates=2, beta=0.1))
    training.step()
    assert set(training.kept) == {"place", "ids", "rewards", "advantages", "old", "reference"}
    tokens = sum(len(e.response) for e in training._answers())
    assert len(training.kept["old"]) == len(training.kept["reference"]) == tokens
    # Drawn at zero deltas: then the policy was the reference.
    assert torch.allclose(training.kept["old"], training.kept["reference"], atol=1e-5)
    training.active.train()
    before = training.kept["ids"]
    training.step()
    assert training.kept == {}
    training.step()
    assert not torch.equal(training.kept["ids"], before)
    assert not torch.allclose(training.kept["old"], training.kept["reference"], atol=1e-5)


def test_the_reference_has_the_stacks_of_earlier_domains(tiny_base: BaseModel) -> None:
    task = task_of(tiny_base, grpo(beta=0.1, updates=2))
    stack = random_stack(tiny_base.identity.dims, 5, size=0.2)
    earlier = EarlierStacks(bank_of({"earlier": stack}), ["earlier"], "all", 0)
    training = RewardTraining(workshop_of(tiny_base), dataclasses.replace(task, earlier=earlier))
    training._draw(0)
    alone = RewardTraining(workshop_of(tiny_base), task)
    alone.kept = training.kept
    examples: list[Example] = training._answers()
    assert torch.equal(training._measured_tokens(examples, active=False), training.kept["reference"])
    assert not torch.allclose(alone._measured_tokens(examples, active=False), training.kept["reference"])


def test_a_step_in_which_no_answer_is_better_than_another_changes_nothing(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REWARDS", {"exact_answer": Reward("a", "", lambda r: "", lambda a, e: 0.0)})
    training = training_of(tiny_base)
    before = {name: p.detach().clone() for name, p in training.active.named_parameters()}
    loss, tokens = training.step()
    assert (loss, training.step_figures["reward"]) == (0.0, 0.0)
    assert tokens > 0
    for name, parameter in training.active.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_stop_between_two_steps_on_the_same_answers_changes_nothing(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    task = task_of(tiny_base, grpo(updates=3, beta=0.1, steps=6, eval_every=2))
    whole = train_stage(workshop_of(tiny_base), task, tmp_path / "whole")
    for stop_after in (2, 2, None):
        stop: Any = StopAfter(stop_after)
        workshop = dataclasses.replace(workshop_of(tiny_base), stop=stop)
        if stop_after is None:
            result = train_stage(workshop, task, tmp_path / "stopped")
            continue
        with pytest.raises(Interrupted):
            train_stage(workshop, task, tmp_path / "stopped")
    assert result.history == whole.history
    assert result.tensors is not None
    assert whole.tensors is not None
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in result.tensors.items())


def test_gradient_checkpointing_changes_no_draw_and_no_step(tiny_base: BaseModel, tmp_path: Path) -> None:
    """A layer that is recomputed drops its cache: an answer drawn so would be another model's."""
    kept, recomputed = (
        trained(tiny_base, task_of(tiny_base, gradient_checkpointing=enabled), tmp_path / str(enabled))
        for enabled in (False, True)
    )
    assert recomputed.history == kept.history
    assert recomputed.tensors is not None
    assert kept.tensors is not None
    assert all(torch.equal(tensor, kept.tensors[name]) for name, tensor in recomputed.tensors.items())
