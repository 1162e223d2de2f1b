"""Where the experiments train: whatever was trained is kept, and never trained twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from benchmarks.experiments.materials import Materials, digest
from benchmarks.experiments.trained import Trained, step_totals
from benchmarks.experiments.trainings import Training, factors, in_order, orthogonal_to
from benchmarks.instruments.timing import Report, say
from brainstacks.config import Quantization
from brainstacks.durable import atomic_write, make_directory
from brainstacks.errors import CorruptBlob
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import StackTensors
from training.data.encoding import Example
from training.recipe.settings import RoundConfig, StackRecipe
from training.rounds import null_space
from training.rounds.active_stack import ActiveStack
from training.rounds.earlier_stacks import EarlierStacks
from training.rounds.inner_loop import train_round
from training.rounds.null_space import NullSpace
from training.rounds.task import Penalty, RoundTask
from training.router.stacked_base import StackedBase
from training.runs import checkpoint
from training.runs.log import RunLog
from training.runs.paths import METRICS

FORMAT = 1
"""Of what is kept: raised when what a training computes changes, so that nothing older is taken."""

Tensors = dict[str, Tensor]
"""As `ActiveStack.export` gives them."""


class Laboratory:
    """Trains what is described, or finds it.

    Args:
        kept: directory of what was trained and measured; each training has a directory by its key, with
            its checkpoints while it is on its way.
        side_by_side: trains several at once, and leaves them in `kept`; None trains one after another.
    """

    def __init__(
        self,
        materials: Materials,
        kept: Path,
        report: Report = say,
        side_by_side: Callable[[Sequence[Training]], Iterable[Training]] | None = None,
    ) -> None:
        self.materials = materials
        self.settings = materials.settings
        self.report = report
        self._kept = kept
        self._made = side_by_side or self._in_turn
        self.key = cache(self._key)

    def on(self, base: str) -> Laboratory:
        """One that does the same on another base, and keeps it in the same place."""
        return Laboratory(self.materials.on(base), self._kept, self.report)

    def train_all(self, trainings: Iterable[Training], later: int = 0) -> None:
        """Train what is missing, and tell how long the rest takes.

        Args:
            later: steps of trainings that will be asked for after these.

        Raises:
            Interrupted: a stop was asked for; the next start goes on where it was.
        """
        missing = [t for t in in_order(trainings) if not self._result(t).is_dir()]
        left, done, start = sum(t.steps for t in missing) + later, 0, monotonic()
        self.report(f"{len(missing)} trainings to do, {left} steps with what follows")
        with self.materials.stop:
            for training in self._made(missing):
                trained = self.trained(training)
                done, left = done + training.steps, left - training.steps
                self.report(
                    f"{training}: selection {trained.losses[0]:.4f} -> {min(trained.losses):.4f} nats; "
                    f"{left} steps left, about {left * (monotonic() - start) / done / 60:.0f} min"
                )

    def _in_turn(self, trainings: Sequence[Training]) -> Iterable[Training]:
        for training in trainings:
            self.trained(training)
            yield training

    def trained(self, training: Training) -> Trained:
        """The result of `training`, which is trained now, after what it builds on, unless it was before.

        Raises:
            Interrupted: a stop was asked for; the next start goes on where it was.
            CorruptBlob: it was written, and cannot be read.
        """
        found = checkpoint.load(self._result(training))
        if found is None:
            self._train(training)
            found = checkpoint.load(self._result(training))
        if found is None:
            raise CorruptBlob(f"the result of {training} was written and does not verify; check the disk")
        stack = StackTensors(self.materials.config(training.stack), 1, found.tensors)
        return Trained(stack, **found.state)

    def _train(self, training: Training) -> None:
        workshop = self.materials.workshop(training.quantization)
        bank = self.bank({t.name: t for t in training.earlier}, training.quantization)
        space = self._null_space(training, bank)
        task = RoundTask(
            domain=training.name,
            number=len(training.own),
            stack=self.materials.config(training.stack),
            train=self._examples(training.domains, "train"),
            selection=self._examples(training.domains, "selection"),
            data=self.settings.recipe().data,
            config=self._round(training),
            earlier=EarlierStacks(bank, [t.name for t in training.earlier], training.mode, training.seed),
            own=[self.bank({"own": t}, training.quantization).bind([{"own": 1.0}]) for t in training.own],
            null_space=space,
            initial=self._weights(training.initial) if training.initial is not None else None,
            penalty=self._penalty(training),
            gating=training.gating,
        )
        place = self._result(training).parent
        make_directory(place)
        with RunLog(place) as log:
            result = train_round(dataclasses.replace(workshop, log=log), task, place / "checkpoints")
        weights = result.tensors or task.initial or self._zero_deltas(training)
        state = {
            "history": [{"step": 0, "val_loss": result.baseline}, *result.history],
            "directions": space.facts() if space is not None else None,
            **step_totals(place / METRICS),
        }
        tensors = {f"rounds.0.{name}": tensor for name, tensor in weights.items()}
        checkpoint.save(self._result(training), tensors, state)
        checkpoint.prune(place / "checkpoints", keep=0)

    def _round(self, training: Training) -> RoundConfig:
        shared = self.settings.round(training.steps, training.rate, training.seed)
        return dataclasses.replace(shared, **dict(training.changes))

    def _examples(self, domains: Sequence[str], split: str) -> list[Example]:
        """Of several domains together, as many of each as the smallest has."""
        found = [self.materials.examples[d, split] for d in domains]
        return [example for examples in zip(*found, strict=False) for example in examples]

    def _weights(self, training: Training) -> Tensors:
        tensors = self.trained(training).stack.tensors
        return {name.removeprefix("rounds.0."): tensor for name, tensor in tensors.items()}

    def _zero_deltas(self, training: Training) -> Tensors:
        torch.manual_seed(training.seed)
        return self._stack(training.stack).export()

    def _stack(self, stack: StackRecipe) -> ActiveStack:
        return ActiveStack(self.materials.config(stack), self.materials.identity.dims)

    def _penalty(self, training: Training) -> Penalty | None:
        if not training.orthogonality:
            return None
        device = self.materials.workshop(training.quantization).base.device
        others = []
        for other in training.earlier:
            stack = self._stack(other.stack)
            stack.start_from(self._weights(other))
            others.append({key: A.detach().to(device) for key, A in factors(stack).items()})
        return orthogonal_to(others, training.orthogonality)

    def _null_space(self, training: Training, bank: StackBank) -> NullSpace | None:
        if training.null_space is None:
            return None
        workshop = self.materials.workshop(training.quantization)
        domains = [d for t in training.earlier for d in t.domains]
        examples = [e for d in domains for e in self.materials.examples[d, "selection"]]
        sources = [bank.bind([{t.name: 1.0 for t in training.earlier}])]
        config = self.settings.null_space(training.null_space)
        return null_space.measure_examples(
            workshop.base.model, workshop.hooks, sources, examples, config, training.stack.applies, domains
        )

    # --- using it --------------------------------------------------------------------------------

    def bank(self, stacks: Mapping[str, Training], quantization: Quantization) -> StackBank:
        """The trained stacks, by these names, where a base of this quantisation is."""
        base = self.materials.workshop(quantization).base
        bank = StackBank(base.device, base.dtype)
        for name, training in stacks.items():
            bank.add(name, self.trained(training).stack)
        return bank

    def stacked(self, stacks: Mapping[str, Training], quantization: Quantization) -> StackedBase:
        """A base of this quantisation with the trained stacks, by these names."""
        workshop = self.materials.workshop(quantization)
        keys = {name: self.key(training) for name, training in stacks.items()}
        bank = self.bank(stacks, quantization)
        return StackedBase(workshop.base, self.materials.tokenizer, workshop.hooks, bank, keys)

    def remembered(self, what: str, facts: Any, compute: Callable[[], Any]) -> Any:
        """The JSON value of `compute`, which is called only where none is kept for the same `facts`."""
        path = self.file(what, facts, "json")
        if not path.is_file():
            atomic_write(path, json.dumps(compute()) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def file(self, what: str, facts: Any, suffix: str) -> Path:
        """Where a measurement that is decided by `facts` is kept."""
        return self._kept / f"{what}-{digest(facts)[:20]}.{suffix}"

    def _result(self, training: Training) -> Path:
        return self._kept / self.key(training)[:20] / "result"

    def _key(self, training: Training) -> str:
        """sha256 of everything that decides the result, with the keys of what it builds on."""
        described = {f.name: self._fact(getattr(training, f.name)) for f in dataclasses.fields(training)}
        domains = [*training.domains, *(d for t in training.earlier for d in t.domains)]
        digests, side = self.materials.digests, training.null_space
        return digest(
            {
                **described,
                "format": FORMAT,
                "base": self.materials.identity.fingerprint,
                "data": {d: [digests[d, "train"], digests[d, "selection"]] for d in domains},
                "round": self._fact(self._round(training)),
                "directions": self._fact(self.settings.null_space(side)) if side else None,
            }
        )

    def _fact(self, value: Any) -> Any:
        if isinstance(value, Training):
            return self.key(value)
        if isinstance(value, tuple):
            return [self._fact(item) for item in value]
        return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
