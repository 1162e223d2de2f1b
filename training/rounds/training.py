"""One round on its way: its steps, its evaluations, and the state that a checkpoint keeps.

The optimiser and its schedule are torch's and transformers'; what is here is what the paper adds.
Everything random in a forward is drawn from a seed of its own, so that a round's state is its weights, the
optimiser, and one number: the step; and that processes, which share a step's forwards, draw what one would.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import DeltaSource
from training.data.batches import Batch, TrainingOrder, collate, micro_batches
from training.data.encoding import Example
from training.rounds.active_stack import ActiveStack
from training.rounds.allocator import return_freed_memory
from training.rounds.layers_recomputed import layers_recomputed
from training.rounds.objective import mean_nll, response_nll
from training.rounds.optimizer import make_optimizer, make_schedule, rated, restore
from training.rounds.task import RoundResult, RoundTask
from training.rounds.workshop import Workshop
from training.runs import checkpoint
from training.runs.stored import flatten, unflatten


@dataclass
class RoundState:
    """What a checkpoint holds besides tensors; `step` is the data cursor too."""

    step: int = 0
    baseline: float = math.inf
    best: float = math.inf
    stale: int = 0
    window: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str | None = None
    log_position: int = 0


class RoundTraining:
    """One round on its way.

    Attributes:
        kept: tensors that a checkpoint holds besides: for those who train by another loss.
    """

    state_class = RoundState

    def __init__(self, workshop: Workshop, task: RoundTask) -> None:
        self.workshop, self.task, self.config = workshop, task, task.config
        self.processes = workshop.processes
        torch.manual_seed(self.config.seed)
        self.active = ActiveStack(
            task.stack,
            workshop.base.identity.dims,
            task.null_space,
            noise=self.config.gate_noise,
            dropout=self.config.dropout,
            gating=task.gating,
        ).to(workshop.base.device)
        if task.initial is not None:
            self.active.start_from(task.initial)
        self.optimizer = make_optimizer(rated(self.active, self.config), self.config, workshop.base.device)
        self.schedule = make_schedule(self.optimizer, self.config)
        self.order = TrainingOrder(
            task.train,
            self.config.batch_size * self.config.accumulation,
            self.config.seed,
            task.data.packing,
            task.data.max_tokens,
        )
        self.state = self.state_class()
        self.snapshot: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.stop_asked = False
        self.learning_rate = 0.0

    # --- start, resume, save ---------------------------------------------------------------------

    def begin(self) -> None:
        """Measure the zero-delta baseline (or, of given weights, theirs)."""
        value = self.selection_nll()
        self.state = self.state_class(baseline=value, best=value)
        self.log("baseline", nll=value)

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Go on as if the round had never stopped.

        Raises:
            ConfigError: the checkpoint is of another version of the trainer.
        """
        state = found.state["round"]
        if state.keys() != {field.name for field in dataclasses.fields(self.state)}:
            raise ConfigError(
                f"the checkpoint of {self.task.title} was written by another version of the trainer; go on "
                "with that, or give another --run"
            )
        self.state = self.state_class(**state)
        names = ("active", "snapshot", "kept", "optimizer", "schedule")
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for name, tensor in found.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.active.load_state_dict(parts["active"])
        self.snapshot, self.kept = parts["snapshot"], parts["kept"]
        restore(self.optimizer, unflatten(parts["optimizer"], found.state["optimizer"]))
        self.schedule.load_state_dict(unflatten(parts["schedule"], found.state["schedule"]))
        self.workshop.log.rewind(self.state.log_position)

    def save(self, checkpoints: Path) -> None:
        """Write everything that `resume` reads."""
        self.processes.on_first(lambda: self._save(checkpoints))

    def _save(self, checkpoints: Path) -> None:
        self.state.log_position = self.workshop.log.position
        optimizer, optimizer_skeleton = flatten(self.optimizer.state_dict())
        schedule, schedule_skeleton = flatten(self.schedule.state_dict())
        parts = {
            "active": self.active.state_dict(),
            "snapshot": self.snapshot,
            "kept": self.kept,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        checkpoint.save(
            checkpoints / f"{checkpoint.PREFIX}{self.state.step:06d}",
            {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()},
            {
                "round": dataclasses.asdict(self.state),
                "optimizer": optimizer_skeleton,
                "schedule": schedule_skeleton,
            },
        )
        checkpoint.prune(checkpoints, keep=2)

    # --- one step --------------------------------------------------------------------------------

    def step(self) -> tuple[float, int]:
        """One optimiser step; (mean NLL of its response tokens, tokens in it, over all processes)."""
        self.active.train()
        self.active.at(self.state.step / self.config.steps)
        with layers_recomputed(self.workshop.base.model, self.config.gradient_checkpointing):
            total, count, tokens = self._backward()
        self.processes.add_gradients(self.active.parameters())
        clip_grad_norm_(self.active.parameters(), self.config.clip)
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        # The one place of a step where the host waits for the device.
        value, asked = self.processes.summed(total, self.workshop.stop.requested)
        self.stop_asked, loss = asked > 0, value / count
        self.state.step += 1
        self.state.window.append(loss)
        if not math.isfinite(loss):
            self.state.stopped = "the training loss is not finite"
        return loss, tokens

    def _backward(self) -> tuple[Tensor, int, int]:
        """This process's share of the gradients of a step; (its sum of the loss, float64; over all processes
        what the loss is a mean of, and tokens)."""
        device, rows = self.workshop.base.device, self.order.batch(self.state.step)
        examples = [example for row in rows for example in row]
        responses = sum(len(e.response) for e in examples)
        tokens = sum(len(e) for e in examples)
        acting = responses if self.task.stack.applies == "response" else tokens
        parts = micro_batches(len(rows), self.config.accumulation)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for i in self.processes.share(range(len(parts))):
            torch.manual_seed(mixed(self.config.seed, self.state.step * self.config.accumulation + i))
            batch = collate([rows[j] for j in parts[i]]).to(device)
            with self._composed(parts[i], batch):
                self.active.begin(batch.segments, batch.responses, batch.examples)
                nll = response_nll(self.workshop.base.model, batch).sum()
                balance = self.active.balance_sum()
                loss = nll / responses + self.config.balance_coefficient * balance / acting
                if self.task.penalty is not None:
                    loss = loss + self.task.penalty(self.active) / len(parts)
                loss.backward()
            total += nll.detach()
        return total, responses, tokens

    def _composed(self, rows: Iterable[int], batch: Batch) -> Any:
        """Frozen and active deltas, around forward and backward: checkpointed layers run again there.

        Args:
            rows: of `batch`, their numbers in the step, however it is split.
        """
        names = [f"{self.config.seed}/{self.state.step}/{i}" for i in rows]
        sources = (*self.task.earlier.of(names), *self.task.own, self.active)
        return self.workshop.hooks.composed(*sources, responses=batch.responses)

    def log_step(self, loss: float, tokens: int, seconds: float) -> None:
        timing = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        self.log("step", timing, loss=loss, learning_rate=self.learning_rate, tokens=tokens)

    # --- evaluation ------------------------------------------------------------------------------

    @property
    def evaluation_due(self) -> bool:
        return self.state.step % self.config.eval_every == 0 or self.state.step == self.config.steps

    @property
    def checkpoint_due(self) -> bool:
        return self.state.step % self.config.checkpoint_every == 0 or self.state.stopped is not None

    def evaluate(self) -> None:
        """Take a snapshot when the selection NLL improved; stop on a spike, a plateau or at the end."""
        state, config = self.state, self.config
        value = self.selection_nll()
        return_freed_memory()
        train_loss = sum(state.window) / len(state.window)
        state.window = []
        state.history.append({"step": state.step, "train_loss": train_loss, "val_loss": value})
        self.log("evaluation", nll=value, train_loss=train_loss)
        if value < state.best:  # false for NaN
            state.best, state.stale = value, 0
            self.snapshot = {name: tensor.cpu() for name, tensor in self.active.export().items()}
        else:
            state.stale += 1
        if state.stopped is not None:
            return
        if not value <= state.best + config.spike:
            state.stopped = "the selection loss spiked"
        elif state.stale >= config.patience:
            state.stopped = f"no improvement in {config.patience} evaluations"
        elif state.step >= config.steps:
            state.stopped = "all steps done"

    def selection_nll(self) -> float:
        self.active.eval()
        task, base = self.task, self.workshop.base

        def sources(examples: Sequence[Example]) -> Sequence[DeltaSource]:
            return (*task.earlier.of([e.id for e in examples]), *task.own, self.active)

        return mean_nll(base.model, self.workshop.hooks, task.selection, sources, processes=self.processes)

    def result(self) -> RoundResult:
        state = self.state
        return RoundResult(
            self.snapshot or None, state.baseline, state.best, state.stopped or "", state.history
        )

    def log(self, kind: str, timing: Mapping[str, float] | None = None, **values: float) -> None:
        self.workshop.log.record(
            kind,
            domain=self.task.domain,
            round=self.task.number,
            step=self.state.step,
            timing=timing or {},
            **values,
        )


def mixed(seed: int, micro_batch: int) -> int:
    """A seed for one micro-batch: no two of them, nor two seeds, share a stream."""
    return (seed * 1_000_003 + micro_batch + 1) % 2**63
