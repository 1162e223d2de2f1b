"""The curriculum: train each domain, freeze it as one file, publish it (paper, section 3.4).

A run keeps every finished round and stack, and checkpoints of the round on its way, in its directory:
started anew after whatever ended it, it goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import StackConfig
from brainstacks.errors import CorruptBlob
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import Predecessor, StackMetadata, check_base, inspect_stack
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack_tensors, save_stack
from training import checkpoint, null_space
from training.allocator import keep_freed_memory
from training.batches import by_length, collate
from training.data import DomainData, prepare
from training.earlier_stacks import EarlierStacks
from training.encoding import Example, encode
from training.forgetting import ForgettingMatrix, measure_row
from training.inner_loop import RoundResult, RoundTask, Workshop, train_round
from training.log import NoLog
from training.null_space import NullSpace
from training.objective import mean_nll
from training.recipe import DomainRecipe, Recipe
from training.run_directory import RunDirectory, atomic_write
from training.run_log import RunLog
from training.signals import StopRequest

Report = Callable[[str], None]


def run_curriculum(
    recipe: Recipe, registry: Registry, path: Path, data: Path | None = None, report: Report = print
) -> tuple[str, ...]:
    """Train and publish every domain of `recipe`, in order.

    Args:
        path: the run's directory.
        data: directory with `<domain>/{train,validation}.jsonl`, in place of the recipe's sources.

    Returns:
        the domains that learned nothing, and were not published.

    Raises:
        ConfigError: the run in `path` was started with another recipe, base or data, or is going on.
        Interrupted: a stop was asked for; start again to go on.
    """
    with _open(recipe, path, data, "curriculum", report) as run:
        for domain in recipe.domains:
            run.take_in(domain, registry)
        return tuple(run.empty)


def run_stack(
    recipe: Recipe,
    domain: str,
    registry: Registry,
    path: Path,
    data: Path | None = None,
    report: Report = print,
) -> tuple[str, ...]:
    """Train one domain of `recipe` on top of what `registry` serves, and publish it: add a skill.

    Arguments, result and errors are those of `run_curriculum`.
    """
    with _open(recipe, path, data, f"stack {domain}", report) as run:
        for other, history in registry.snapshot().domains.items():
            if other != domain:
                run.hold(registry.blob_path(history.current.digest))
        run.take_in(recipe.domain(domain), registry)
        return tuple(run.empty)


@contextmanager
def _open(
    recipe: Recipe, path: Path, data: Path | None, command: str, report: Report
) -> Iterator[_Curriculum]:
    keep_freed_memory()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    records = prepare(recipe, data)
    base = load_base(
        recipe.base, quantization=recipe.quantization, device=str(accelerator.device), trainable=True
    )
    identity = {
        "command": command,
        "recipe": {k: v for k, v in dataclasses.asdict(recipe).items() if k != "router"},
        "base": base.identity.fingerprint,
        "data": {name: {s.name: s.digest for s in d.sources} for name, d in records.items()},
        "processes": accelerator.num_processes,
        "tools": tool_versions(),
    }
    hooks = CompositionHooks(base.sites)
    hooks.attach()
    main = accelerator.is_main_process
    run = RunDirectory(path, identity)
    with ExitStack() as resources:
        if main:
            resources.enter_context(run)
        log = resources.enter_context(RunLog(path)) if main else NoLog()
        stop = resources.enter_context(StopRequest())
        workshop = Workshop(accelerator, base, hooks, log, stop)
        yield _Curriculum(recipe, workshop, run, records, report if main else lambda line: None)
    hooks.detach()


@dataclass
class _Curriculum:
    """A run on its way: what is frozen so far, and how the next domain is added to it."""

    recipe: Recipe
    workshop: Workshop
    run: RunDirectory
    records: Mapping[str, DomainData]
    report: Report
    frozen: list[Predecessor] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    log_position: int = 0

    def __post_init__(self) -> None:
        base = self.base
        self.bank = StackBank(base.device, base.dtype)
        self.tokenizer = base.chat_tokenizer()
        self.forgetting = self._known_forgetting()

    @property
    def base(self) -> BaseModel:
        return self.workshop.base

    def take_in(self, domain: DomainRecipe, registry: Registry) -> None:
        """Train `domain` unless that is done; freeze, publish and measure it."""
        path = self.run.stack(domain.name)
        if path.is_file():
            self._skip(domain)
        else:
            self._train(domain, path)
        if not path.is_file():
            self.report(f"{domain.name}: no round beat the zero-delta baseline; nothing is frozen")
            self.empty.append(domain.name)
            return
        self.hold(path)
        if self.workshop.accelerator.is_main_process:
            published = registry.publish(path)
            self.report(f"{domain.name}: version {published.version}, digest {published.digest[:12]}")

    def _skip(self, domain: DomainRecipe) -> None:
        """Leave the log of a domain that an earlier start finished as it is."""
        for number in range(domain.max_rounds or self.recipe.max_rounds):
            found = checkpoint.load(self.run.round(domain.name, number))
            if found is not None:
                self.log_position = found.state["log_position"]

    def hold(self, path: Path) -> None:
        """Put the frozen stack in the file `path` on the device, and measure what it does to earlier ones.

        Raises:
            IncompatibleArtifact: it was made for another base.
        """
        file = inspect_stack(path)
        metadata, identity = file.metadata, self.base.identity
        check_base(metadata, identity.fingerprint, identity.dims, identity.layers)
        tensors = load_stack_tensors(path)
        self.bank.add(metadata.domain, StackTensors(metadata.config, metadata.rounds, tensors))
        self.frozen.append(Predecessor(metadata.domain, file.digest))
        if metadata.domain in self.records:
            self._measure_forgetting()

    # --- one domain ------------------------------------------------------------------------------

    def _train(self, domain: DomainRecipe, path: Path) -> None:
        """Train the rounds of `domain` and write its stack to `path`; no file when none of them helped."""
        train, selection, validation = (
            self._encoded(domain.name, split) for split in ("train", "selection", "validation")
        )
        self.report(f"{domain.name}: {len(train)} examples")
        earlier = EarlierStacks(
            self.bank, [p.domain for p in self.frozen], self.recipe.earlier_stacks, self.recipe.round.seed
        )
        space = self._null_space(domain.name)
        rounds: list[RoundResult] = []
        for number in range(domain.max_rounds or self.recipe.max_rounds):
            own = self._own(domain.name, rounds)
            task = RoundTask(
                domain=domain.name,
                number=number,
                stack=self._stack_config(),
                train=train,
                selection=selection,
                data=self.recipe.data,
                config=self.recipe.round_of(domain, number),
                earlier=earlier,
                own=[own.bind([{domain.name: 1.0}])] if rounds else [],
                null_space=space,
            )
            result = self._round(task)
            self.report(
                f"{domain.name}, round {number + 1}: selection {result.baseline:.4f} -> {result.best:.4f} "
                f"nats; {result.stopped}"
            )
            if result.tensors is None or result.baseline - result.best < self.recipe.min_gain:
                break
            rounds.append(result)
        if rounds:
            self._on_main(lambda: self._freeze(domain, path, rounds, validation, space))

    def _round(self, task: RoundTask) -> RoundResult:
        """Train one round, or read it where it is finished; its checkpoints are not needed after that."""
        checkpoints = self.run.checkpoints(task.domain) / f"round-{task.number}"

        def train() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            result = train_round(self.workshop, task, checkpoints, self.log_position)
            dtype = torch.bfloat16 if self.recipe.stack.dtype == "bfloat16" else torch.float32
            tensors = {name: tensor.to(dtype) for name, tensor in (result.tensors or {}).items()}
            state = {k: v for k, v in dataclasses.asdict(result).items() if k != "tensors"}
            return tensors, {**state, "log_position": self.workshop.log.position}

        found = self._kept(self.run.round(task.domain, task.number), train)
        self._on_main(lambda: checkpoint.prune(checkpoints, keep=0))
        self.log_position = found.state["log_position"]
        state = {k: v for k, v in found.state.items() if k != "log_position"}
        return RoundResult(found.tensors or None, **state)

    def _kept(
        self, directory: Path, make: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]
    ) -> checkpoint.Checkpoint:
        """What `make` gives, made once a run; always as read from disk, so that a resumed run has the same.

        Raises:
            CorruptBlob: it was written, and cannot be read.
        """
        missing = checkpoint.load(directory) is None
        self.workshop.accelerator.wait_for_everyone()  # all look before one of them writes
        if missing:
            tensors, state = make()
            self._on_main(lambda: checkpoint.save(directory, tensors, state))
        found = checkpoint.load(directory)
        if found is None:
            raise CorruptBlob(f"{directory.name} of the run was written and does not verify; check the disk")
        return found

    def _on_main(self, write: Callable[[], object]) -> None:
        """Let the main process write what all of them will read."""
        if self.workshop.accelerator.is_main_process:
            write()
        self.workshop.accelerator.wait_for_everyone()

    def _own(self, domain: str, rounds: Sequence[RoundResult]) -> StackBank:
        """A bank of the domain's own frozen rounds."""
        bank = StackBank(self.base.device, self.base.dtype)
        if rounds:
            bank.add(domain, StackTensors(self._stack_config(), len(rounds), _stacked(rounds)))
        return bank

    def _freeze(
        self,
        domain: DomainRecipe,
        path: Path,
        rounds: Sequence[RoundResult],
        validation: Sequence[Example],
        space: NullSpace | None,
    ) -> None:
        """Write the finished stack; its losses are those with the earlier stacks as they were in training."""
        model, hooks = self.base.model, self.workshop.hooks
        together = self.recipe.earlier_stacks != "none" and bool(self.frozen)
        frozen = [self.bank.bind([{p.domain: 1.0 for p in self.frozen}])] if together else []
        own = self._own(domain.name, rounds).bind([{domain.name: 1.0}])
        before = mean_nll(model, hooks, validation, frozen)
        after = mean_nll(model, hooks, validation, (*frozen, own))
        self.report(f"{domain.name}: validation {before:.4f} -> {after:.4f} nats")
        losses: list[dict[str, Any]] = [
            {
                "selection_before": r.baseline,
                "selection_after": r.best,
                "stopped": r.stopped,
                "history": list(r.history),
            }
            for r in rounds
        ]
        losses[0]["validation_before"], losses[-1]["validation_after"] = before, after
        metadata = StackMetadata(
            domain=domain.name,
            rounds=len(rounds),
            config=self._stack_config(),
            dims=self.base.identity.dims,
            base=self.base.identity.ref,
            null_space=space.facts() if space is not None else None,
            predecessors=tuple(self.frozen) if self.recipe.earlier_stacks != "none" else (),
            data=self.records[domain.name].sources,
            hyperparameters={
                **dataclasses.asdict(self.recipe.round_of(domain, 0)),
                "quantization": self.recipe.quantization,
                "max_tokens": self.recipe.data.max_tokens,
                "packing": self.recipe.data.packing,
                "max_rounds": domain.max_rounds or self.recipe.max_rounds,
                "earlier_stacks": self.recipe.earlier_stacks,
            },
            seed=self.recipe.round.seed,
            losses=tuple(losses),
            tool_versions=tool_versions(),
            licence=domain.licence,
            description=domain.description,
        )
        save_stack(path, metadata, _stacked(rounds))

    def _stack_config(self) -> StackConfig:
        shape = self.recipe.stack
        return StackConfig(
            rank=shape.rank,
            alpha=shape.alpha,
            experts=shape.experts,
            top_k=shape.top_k,
            layers=self.base.identity.layers,
        )

    def _encoded(self, domain: str, split: str) -> list[Example]:
        records = getattr(self.records[domain], split)
        return encode(records, self.tokenizer, self.recipe.data.max_tokens)

    # --- across domains --------------------------------------------------------------------------

    def _null_space(self, domain: str) -> NullSpace | None:
        """Where the earlier domains' stacks write, or what their inputs hold; measured once a run."""
        config = self.recipe.null_space
        known = [p.domain for p in self.frozen if p.domain in self.records]
        if config is None or not known:
            return None

        def measure() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            share = -(-config.samples // len(known))
            examples = [e for d in known for e in self._encoded(d, "selection")[:share]]
            batches = [collate(group) for group in by_length(examples, batch_size=16)]
            sources = [self.bank.bind([{p.domain: 1.0 for p in self.frozen}])]
            space = null_space.measure(self.base.model, self.workshop.hooks, sources, batches, config, known)
            return space.to_tensors(), {"facts": space.facts()}

        found = self._kept(self.run.domain(domain) / "null-space", measure)
        here = {name: tensor.to(self.base.device) for name, tensor in found.tensors.items()}
        return NullSpace.from_tensors(here, found.state["facts"])

    def _measure_forgetting(self) -> None:
        """Add the row of the domain frozen last, unless it is known.

        Raises:
            RuntimeError: an earlier prefix loss is not, bit for bit, what it was: something changed a
                frozen stack, or the base.
        """
        domains = [p.domain for p in self.frozen if p.domain in self.records]
        if domains[-1] in self.forgetting.domains:
            return
        examples = {d: self._encoded(d, "validation")[: self.recipe.data.forgetting] for d in domains}
        row = measure_row(self.base.model, self.workshop.hooks, self.bank, domains, examples)
        self.forgetting = self.forgetting.add(domains[-1], row)
        if self.forgetting.changed():
            raise RuntimeError(f"the prefix loss of {', '.join(self.forgetting.changed())} has changed")
        document = {"environment": environment(), **self.forgetting.to_dict()}
        self._on_main(lambda: atomic_write(self.run.forgetting, json.dumps(document, indent=2) + "\n"))

    def _known_forgetting(self) -> ForgettingMatrix:
        """What an earlier start measured; nothing where it computed in another way, and so other bits."""
        if not self.run.forgetting.is_file():
            return ForgettingMatrix()
        document = json.loads(self.run.forgetting.read_text(encoding="utf-8"))
        if document.pop("environment") != environment():
            return ForgettingMatrix()
        return ForgettingMatrix.from_dict(document)


def _stacked(rounds: Sequence[RoundResult]) -> dict[str, Tensor]:
    """The tensors of all rounds, named as a stack file names them."""
    return {
        f"rounds.{n}.{name}": tensor
        for n, result in enumerate(rounds)
        for name, tensor in (result.tensors or {}).items()
    }


def environment() -> dict[str, Any]:
    """What the last bits of a sum depend on, beside its terms."""
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    )
    return {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}


def tool_versions() -> dict[str, str]:
    """What produced an artefact, for its header."""
    packages = ("brainstacks", "torch", "transformers", "bitsandbytes")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
