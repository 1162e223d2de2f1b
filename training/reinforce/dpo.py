"""Direct preference optimisation of a round (Rafailov et al., 2023, eq. 7).

TRL's trainer is not used: it makes its reference by loading a model again or by taking a PEFT adapter off,
and knows no other deltas. Its loss is this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.batches import TOKENS, Batch, collate, loss_batches, micro_batches
from training.data.encoding import Example
from training.progress import tracked
from training.recipe.reinforcement import DpoRecipe
from training.reinforce.items import Pair
from training.reinforce.stage import Figures, StageTask, StageTraining
from training.rounds.objective import row_sums
from training.rounds.workshop import Workshop


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """-log sigmoid(margin), with margin = beta * ((log pi - log ref)(chosen) - (log pi - log ref)(rejected)).

    Args:
        policy, reference: [N, 2] summed log-probabilities (nats) of chosen and rejected answers.

    Returns:
        losses and margins, [N] each.
    """
    ratios = policy - reference
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    return -F.logsigmoid(margins), margins


class PreferenceTraining(StageTraining):
    """A stage of preference pairs. `kept` has the reference's log-probabilities, [N, 2] float32."""

    def __init__(self, workshop: Workshop, task: StageTask) -> None:
        super().__init__(workshop, task)
        self._stage = cast(DpoRecipe, task.stage)
        self._items, self._held_out = cast(Sequence[Pair], task.items), cast(Sequence[Pair], task.held_out)
        self._places = {pair.example.id: i for i, pair in enumerate(self._items)}

    def prepare(self) -> None:
        self.kept = {
            "items": self._measured_pairs(self._items, active=False),
            "held_out": self._measured_pairs(self._held_out, active=False),
        }

    def rank(self, figures: Figures) -> tuple[float, ...]:
        return figures["accuracy"], -figures["loss"]

    def figures(self) -> dict[str, float]:
        """`accuracy`: share of pairs whose margin is above 0, a margin of 0 counting half; `likelier`: share
        whose preferred answer has the higher log-probability; mean `loss` and `margin`."""
        policy = self._measured_pairs(self._held_out)
        losses, margins = dpo_loss(policy, self.kept["held_out"], self._stage.beta)
        return {
            "accuracy": float(((margins.sign() + 1) / 2).mean()),
            "likelier": float((policy[:, 0] > policy[:, 1]).float().mean()),
            "loss": float(losses.mean()),
            "margin": float(margins.mean()),
        }

    def _backward(self) -> tuple[Tensor, int, int]:
        device = self.workshop.base.device
        places = [self._places[row[0].id] for row in self.order.batch(self.state.step)]
        pairs = [self._items[i] for i in places]
        every = [e for pair in pairs for e in (pair.example, pair.rejected)]
        total, right = torch.zeros((), dtype=torch.float64, device=device), 0.0
        for part in micro_batches(len(pairs), self.config.accumulation):
            examples, host = _together([pairs[j] for j in part])
            batch = host.to(device)
            self.active.begin(batch.segments, batch.responses, batch.examples)
            with self.composed(examples, batch):
                policy = _of_pairs(self.logprobs(batch), host)
                reference = self.kept["items"][[places[j] for j in part]]
                losses, margins = dpo_loss(policy, reference, self._stage.beta)
                balance = self.config.balance_coefficient * self.active.balance_sum() / self.acting(every)
                (losses.sum() / len(pairs) + balance.cpu()).backward()
            total += losses.detach().double().sum().to(device)
            right += float((margins.detach() > 0).sum())
        self.step_figures = {"right": right / len(pairs)}
        return total, len(pairs), sum(map(len, every))

    @torch.no_grad()
    def _measured_pairs(self, pairs: Sequence[Pair], active: bool = True) -> Tensor:
        """[N, 2] summed log-probabilities of the answers of all `pairs`, on the CPU."""
        found = torch.zeros(len(pairs), 2)
        longest = [max(pair.example, pair.rejected, key=len) for pair in pairs]
        with tracked(loss_batches(longest, TOKENS // 2), "measuring pairs", "batches") as each:
            for rows in each:
                examples, host = _together([pairs[i] for i in rows])
                batch = host.to(self.workshop.base.device)
                with self.composed(examples, batch, active):
                    found[rows] = _of_pairs(self.logprobs(batch), host)
        return found


def _together(pairs: Sequence[Pair]) -> tuple[list[Example], Batch]:
    """The preferred answers of `pairs`, then the others, a row each."""
    examples = [pair.example for pair in pairs] + [pair.rejected for pair in pairs]
    return examples, collate(examples)


def _of_pairs(logprobs: Tensor, batch: Batch) -> Tensor:
    """[N, 2] sums of the log-probabilities of a batch that `_together` made, on the CPU."""
    return row_sums(logprobs, batch).view(2, -1).T
