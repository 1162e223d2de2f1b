"""Group-relative policy optimisation of a round (Shao et al., 2024, eq. 3), with rewards that are verified.

TRL's trainer is not used, for the reasons of `dpo.py`. Its loss is this one, with `loss_type="grpo"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.data.batches import collate, loss_batches
from training.data.encoding import Example
from training.progress import tracked
from training.recipe.reinforcement import GrpoRecipe
from training.reinforce.items import Question
from training.reinforce.rewards import REWARDS
from training.reinforce.rollouts import draw
from training.reinforce.stage import Figures, StageTask, StageTraining
from training.rounds.training import mixed
from training.rounds.workshop import Workshop

ROWS = 32
"""Answers that are drawn at once."""
EPSILON = 1e-4
"""Added to a group's deviation."""


def advantages_of(rewards: Tensor) -> Tensor:
    """(reward - mean) / (deviation + EPSILON), within each group.

    Args:
        rewards: [groups, group_size] float.
    """
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + EPSILON)


def clipped_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(ratio * advantage, clamp(ratio, 1 - clip, 1 + clip) * advantage), ratio = exp(logprobs - old).

    Args:
        logprobs, old, advantages: [M], of tokens: under the policy, under the one that drew them, of their
            answer.
    """
    ratio = (logprobs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def divergence(logprobs: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference - logprobs, [M]: an unbiased estimate of the KL divergence."""
    difference = reference - logprobs
    return difference.exp() - difference - 1


class RewardTraining(StageTraining):
    """A stage of rewards.

    `kept` has the answers of the last draw while there are steps to take on them: `place` [N] of their
    question among the items, `ids` [N, T] padded with -1, `rewards` and `advantages` [N], and of their tokens
    the log-probabilities, [sum of lengths]: `old`, under the policy that drew them, where several steps are
    taken, and `reference`, where beta is not 0.
    """

    def __init__(self, workshop: Workshop, task: StageTask) -> None:
        super().__init__(workshop, task)
        self._stage = cast(GrpoRecipe, task.stage)
        self._items = cast(Sequence[Question], task.items)
        self._held_out = cast(Sequence[Question], task.held_out)
        self._places = {question.example.id: i for i, question in enumerate(self._items)}
        self._score = REWARDS[self._stage.reward].score
        self._tokenizer = workshop.base.chat_tokenizer()

    def prepare(self) -> None:
        """Nothing: a reference is measured of the answers that are drawn."""

    def rank(self, figures: Figures) -> tuple[float, ...]:
        return figures["reward"], -figures["nll"]

    def figures(self) -> dict[str, float]:
        """Mean `reward` and `length` (tokens) of the likeliest answers."""
        answers = self._drawn(self._held_out, 0.0)
        rewards = self._rewards(self._held_out, answers)
        return {"reward": float(rewards.mean()), "length": sum(map(len, answers)) / len(answers)}

    def step(self) -> tuple[float, int]:
        draw_number, update = divmod(self.state.step, self._stage.updates)
        if update == 0:
            self._draw(draw_number)
        done = super().step()
        if update == self._stage.updates - 1:
            self.kept = {}
        return done

    def _backward(self) -> tuple[Tensor, int, int]:
        stage, model = self._stage, self.workshop.base.model
        every, advantages = self._answers(), self.kept["advantages"].to(model.device)
        lengths = [len(e.response) for e in every]
        starts = [0, *accumulate(lengths)]
        rewards = self.kept["rewards"]
        self.step_figures = {"reward": float(rewards.mean()), "length": sum(lengths) / len(lengths)}
        # Of a group whose answers are all as good, no token has an advantage: it teaches nothing.
        some = [i for i in range(len(every)) if stage.beta or bool(self.kept["advantages"][i])]
        taught = [every[i] for i in some]
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        for rows in loss_batches(taught, self.config.batch_size * self.task.data.max_tokens):
            chosen = [some[row] for row in rows]
            examples = [every[i] for i in chosen]
            batch = collate(examples).to(model.device)
            tokens = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in chosen])
            counts = torch.tensor([lengths[i] for i in chosen], device=model.device)
            of_tokens = advantages[chosen].repeat_interleave(counts)
            self.active.begin(batch.segments, batch.responses, batch.examples)
            with self.composed(examples, batch):
                logprobs = self.logprobs(batch, stage.temperature)
                old = self.kept["old"][tokens].to(model.device) if stage.updates > 1 else logprobs.detach()
                losses = clipped_loss(logprobs, old, of_tokens, stage.clip)
                if stage.beta:
                    reference = self.kept["reference"][tokens].to(model.device)
                    losses = losses + stage.beta * divergence(logprobs, reference)
                loss = (losses / counts.repeat_interleave(counts)).sum()
                balance = self.config.balance_coefficient * self.active.balance_sum() / self.acting(taught)
                (loss / len(every) + balance).backward()
            total += loss.detach().double()
        return total, len(every), sum(map(len, every))

    # --- answers ----------------------------------------------------------------------------------

    def _draw(self, number: int) -> None:
        """Draw a group of answers to each question of step `number` of the order, and reward them."""
        stage = self._stage
        places = [
            self._places[row[0].id] for row in self.order.batch(number) for _ in range(stage.group_size)
        ]
        questions = [self._items[i] for i in places]
        generator = torch.Generator().manual_seed(mixed(self.config.seed, number))
        self.active.eval()
        answers = self._drawn(questions, stage.temperature, generator)
        rewards = self._rewards(questions, answers)
        self.kept = {
            "place": torch.tensor(places),
            "ids": pad_sequence([torch.tensor(a) for a in answers], batch_first=True, padding_value=-1),
            "rewards": rewards,
            "advantages": advantages_of(rewards.view(-1, stage.group_size)).flatten(),
        }
        examples = self._answers()
        if stage.updates > 1:
            self.kept["old"] = self._measured_tokens(examples)
        if stage.beta:
            self.kept["reference"] = self._measured_tokens(examples, active=False)

    def _answers(self) -> list[Example]:
        """Those of the last draw."""
        prompts = [self._items[i].example for i in self.kept["place"].tolist()]
        ids = [[i for i in row if i >= 0] for row in self.kept["ids"].tolist()]
        return [Example(e.id, e.prompt, tuple(answer)) for e, answer in zip(prompts, ids, strict=True)]

    def _drawn(
        self, questions: Sequence[Question], temperature: float, generator: torch.Generator | None = None
    ) -> list[tuple[int, ...]]:
        answers: list[tuple[int, ...]] = []
        room = self.task.data.max_tokens
        with tracked(range(0, len(questions), ROWS), "drawing answers", "batches") as each:
            for first in each:
                examples = [question.example for question in questions[first : first + ROWS]]
                limits = [min(self._stage.max_new_tokens, room - len(e.prompt)) for e in examples]
                answers += draw(
                    self.workshop.base.model,
                    self.workshop.hooks,
                    self.sources(examples),
                    [e.prompt for e in examples],
                    limits,
                    self._tokenizer.eos_token_ids,
                    temperature,
                    generator,
                )
        return answers

    def _rewards(self, questions: Sequence[Question], answers: Sequence[Sequence[int]]) -> Tensor:
        texts = [self._tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        answered = list(zip(texts, questions, strict=True))
        with tracked(answered, "rewarding answers", "answers") as each:
            return torch.tensor([self._score(text, question.expected) for text, question in each])

    @torch.no_grad()
    def _measured_tokens(self, examples: Sequence[Example], active: bool = True) -> Tensor:
        """Log-probabilities of the tokens of all answers, one after another, on the CPU."""
        found: list[Tensor] = [torch.empty(0)] * len(examples)
        with tracked(loss_batches(examples), "measuring answers", "batches") as each:
            for rows in each:
                some = [examples[i] for i in rows]
                batch = collate(some).to(self.workshop.base.device)
                with self.composed(some, batch, active):
                    values = self.logprobs(batch, self._stage.temperature).cpu()
                for i, of_answer in zip(rows, values.split([len(e.response) for e in some]), strict=True):
                    found[i] = of_answer
        return torch.cat(found)
