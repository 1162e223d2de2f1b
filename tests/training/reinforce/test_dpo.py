"""Preference pairs: the loss is the published one, and what it raises is what is frozen."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.config import Applies
from tests.tiny import bank_of, random_stack
from tests.training.examples import plain_nll
from tests.training.reinforce.stages import dpo, preferences, stage_of, trained
from tests.training.workshop import workshop_of
from training.data.batches import LABEL_COST, TOKENS, Batch
from training.data.encoding import Example
from training.reinforce.dpo import PreferenceTraining, dpo_loss
from training.rounds.earlier_stacks import EarlierStacks


def test_the_loss_is_that_of_the_paper_and_of_trl() -> None:
    policy = torch.tensor([[-12.0, -15.0], [-3.5, -2.0]], requires_grad=True)
    reference = torch.tensor([[-13.0, -14.0], [-3.0, -2.5]])
    losses, differentiable = dpo_loss(policy, reference, 0.1)
    margins = differentiable.detach()
    # As TRL has it: chosen less rejected, of each model; -logsigmoid(beta * (policy's - reference's)).
    for i, (ours, theirs) in enumerate((((-12.0 + 15.0), (-13.0 + 14.0)), ((-3.5 + 2.0), (-3.0 + 2.5)))):
        margin = 0.1 * (ours - theirs)
        assert float(margins[i]) == pytest.approx(margin)
        assert float(losses[i].detach()) == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-6)
    losses.sum().backward()
    assert policy.grad is not None
    expected = [[-0.1 * float(torch.sigmoid(-m)), 0.1 * float(torch.sigmoid(-m))] for m in margins]
    assert torch.allclose(policy.grad, torch.tensor(expected))


def test_at_zero_deltas_every_pair_is_undecided_and_the_reference_is_the_model_below(
    tiny_base: BaseModel,
) -> None:
    task = stage_of(tiny_base, dpo(), preferences())
    stack = random_stack(tiny_base.identity.dims, 5, size=0.2)
    bank = bank_of({"earlier": stack})
    object.__setattr__(task, "earlier", EarlierStacks(bank, ["earlier"], "all", 0))
    training = PreferenceTraining(workshop_of(tiny_base), task)
    training.begin()
    before = training.state.before
    assert before["accuracy"] == 0.5
    assert before["margin"] == 0.0
    assert before["loss"] == pytest.approx(math.log(2))
    first: tuple[Example, Example] = (task.items[0].example, task.items[0].rejected)  # type: ignore[union-attr]
    plain = [-plain_nll(example, [(stack, 1.0)]) for example in first]
    assert training.kept["items"][0].tolist() == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("applies", ["everywhere", "response"])
def test_a_stage_learns_what_is_preferred(tiny_base: BaseModel, applies: Applies, tmp_path: Path) -> None:
    result = trained(tiny_base, stage_of(tiny_base, dpo(), preferences(), applies), tmp_path)
    assert result.tensors is not None
    assert result.after["accuracy"] == 1.0
    assert result.after["margin"] > 0.1
    assert result.after["loss"] < result.before["loss"]
    assert (result.baseline, result.best) == (result.before["nll"], result.after["nll"])
    assert result.method == "dpo"


def test_gradients_do_not_depend_on_how_a_step_is_split(tiny_base: BaseModel) -> None:
    found = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        task = stage_of(tiny_base, dpo(batch_size=batch_size), preferences(4), accumulation=accumulation)
        training = PreferenceTraining(workshop_of(tiny_base), task)
        training.begin()
        training.active.train()
        training._backward()
        found.append([p.grad for p in training.active.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert any(bool(g.any()) for g in found[0])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_stage_whose_loss_rises_beyond_the_bound_is_stopped_and_not_frozen(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    task = stage_of(tiny_base, dpo(), preferences(against=True))
    result = trained(tiny_base, task, tmp_path, max_nll_rise=0.0)
    assert result.tensors is None
    assert result.history[-1]["accuracy"] > 0.5
    assert "rose by more than 0 nats" in result.stopped
    assert result.after == result.before
    assert "not frozen" in result.told("chat, stage 1")[0]


def test_a_stage_that_raises_nothing_is_not_frozen(tiny_base: BaseModel, tmp_path: Path) -> None:
    result = trained(tiny_base, stage_of(tiny_base, dpo(), preferences()), tmp_path, min_gain=0.6)
    assert result.tensors is None, "from 0.5 accuracy can rise by 0.5"
    assert result.history[-1]["accuracy"] == 1.0


def test_a_stage_that_diverges_is_not_frozen(tiny_base: BaseModel, tmp_path: Path) -> None:
    task = stage_of(tiny_base, dpo(learning_rate=1e30, eval_every=1, patience=2), preferences())
    result = trained(tiny_base, task, tmp_path)
    assert result.tensors is None
    assert result.stopped


def test_both_answers_of_the_pairs_that_are_measured_together_fit_a_forward(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = PreferenceTraining(workshop_of(tiny_base), stage_of(tiny_base, dpo(), preferences(4, 90)))
    sizes: list[int] = []
    logprobs = training.logprobs

    def counted(batch: Batch) -> torch.Tensor:
        sizes.append(max(batch.input_ids.numel(), LABEL_COST * len(batch.labelled)))
        return logprobs(batch)

    monkeypatch.setattr(training, "logprobs", counted)
    training.prepare()
    assert sum(sizes) > TOKENS >= max(sizes)
