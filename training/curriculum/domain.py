"""Train one domain: its residual rounds, where they may write, and the stack that they freeze into."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.durable import atomic_write
from brainstacks.errors import ConfigError, CorruptBlob
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import StackMetadata, sha256_file
from brainstacks.stacks.tensors import save_stack
from training.data.domains import DomainData
from training.data.encoding import Example, encode
from training.progress import working
from training.recipe.recipe import DomainRecipe, Recipe
from training.rounds import null_space
from training.rounds.earlier_stacks import EarlierStacks
from training.rounds.frozen_stacks import FrozenStacks
from training.rounds.inner_loop import train_round
from training.rounds.null_space import NullSpace
from training.rounds.objective import mean_nll
from training.rounds.signature import make_signature
from training.rounds.task import RoundResult, RoundTask
from training.rounds.workshop import Workshop
from training.runs import checkpoint
from training.runs.directory import SPLITTING, RunDirectory
from training.runs.provenance import tool_versions

_log = logging.getLogger(__name__)

Report = Callable[[str], None]

Made = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors and JSON state of something that a run makes once."""


class DomainTraining:
    """How every domain of a run is trained.

    Args:
        frozen: the stacks of earlier domains; grows while the run goes on.
        records: the data of every domain of the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        workshop: Workshop,
        run: RunDirectory,
        frozen: FrozenStacks,
        records: Mapping[str, DomainData],
        report: Report,
    ) -> None:
        self._recipe, self._workshop, self._run = recipe, workshop, run
        self._frozen, self._records, self._report = frozen, records, report
        self._tokenizer = workshop.base.chat_tokenizer()
        self._log_position = 0

    def encoded(self, domain: str, split: str) -> list[Example]:
        """The examples of one split of `domain`: one of `training.data.domains.SPLITS`."""
        return encode(getattr(self._records[domain], split), self._tokenizer, self._recipe.data.max_tokens)

    def finished(self, domain: str) -> bool:
        """Whether its stack is there, as it was written. One that is not is removed, with a warning."""
        path, digest = self._run.stack(domain), self._run.stack_digest(domain)
        there = path.is_file()
        whole = there and digest.is_file() and digest.read_text(encoding="utf-8").strip() == sha256_file(path)
        self._workshop.accelerator.wait_for_everyone()  # all look before one of them removes it
        if there and not whole:
            _log.warning("%s of %s does not verify; it is made again from its rounds", path.name, domain)
            self._on_main(path.unlink)
        return whole

    def skip(self, domain: DomainRecipe) -> None:
        """Leave the log of a domain that an earlier start finished as it is."""
        for number in range(self._recipe.rounds_of(domain)):
            found = checkpoint.load(self._run.round(domain.name, number))
            if found is not None:
                self._log_position = found.state["log_position"]

    def train(self, domain: DomainRecipe) -> None:
        """Train the rounds of `domain` and write its stack; no file when none of them helped."""
        train, selection = self.encoded(domain.name, "train"), self.encoded(domain.name, "selection")
        validation = self.encoded(domain.name, "validation")
        self._report(self._told(domain.name, train))
        mode, seed = self._recipe.earlier_stacks, self._recipe.round.seed
        earlier = EarlierStacks(self._frozen.bank, self._frozen.domains, mode, seed)
        space = self._null_space(domain.name)
        rounds: list[RoundResult] = []
        for number in range(self._recipe.rounds_of(domain)):
            self._workshop.stop_here_if_asked(f"before {domain.name}, round {number + 1}")
            task = RoundTask(
                domain=domain.name,
                number=number,
                stack=self._stack_config(),
                train=train,
                selection=selection,
                data=self._recipe.data,
                config=self._recipe.round_of(domain, number),
                earlier=earlier,
                own=[self._bank_of(domain.name, rounds).bind([{domain.name: 1.0}])] if rounds else [],
                null_space=space,
            )
            result = self._round(task)
            self._report(
                f"{domain.name}, round {number + 1}: selection {result.baseline:.4f} -> {result.best:.4f} "
                f"nats; {result.stopped}"
            )
            if result.tensors is None or result.baseline - result.best < self._recipe.min_gain:
                break
            rounds.append(result)
        if rounds:
            self._freeze(domain, rounds, train, validation, space)

    def _told(self, domain: str, train: Sequence[Example]) -> str:
        """What of a domain's training records is learnt."""
        records, limit = self._records[domain].train, self._recipe.data.max_tokens
        cut = sum(example.cut for example in train)
        return (
            f"{domain}: {len(train)} of {len(records)} records; {len(records) - len(train)} left out (no "
            f"room, or refused by the chat template), {cut} cut at {limit} tokens"
        )

    # --- made once a run -------------------------------------------------------------------------

    def _round(self, task: RoundTask) -> RoundResult:
        """Train one round, or read it where it is finished; its checkpoints are not needed after that."""
        checkpoints = self._run.checkpoints(task.domain) / f"round-{task.number}"

        def train() -> Made:
            result = train_round(self._workshop, task, checkpoints, self._log_position)
            dtype = getattr(torch, self._recipe.stack.dtype)
            tensors = {name: tensor.to(dtype) for name, tensor in (result.tensors or {}).items()}
            state = {k: v for k, v in vars(result).items() if k != "tensors"}
            return tensors, {**state, "log_position": self._workshop.log.position}

        found = self._kept(self._run.round(task.domain, task.number), train)
        self._on_main(lambda: checkpoint.prune(checkpoints, keep=0))
        self._log_position = found.state["log_position"]
        state = {k: v for k, v in found.state.items() if k != "log_position"}
        return RoundResult(found.tensors or None, **state)

    def _null_space(self, domain: str) -> NullSpace | None:
        """Where the earlier domains' stacks write, or what their inputs hold."""
        config, model, known = self._recipe.null_space, self._workshop.base.model, self._frozen.domains
        if config is None or not known:
            return None
        unknown = [d for d in known if d not in self._records]
        if unknown:
            raise ConfigError(
                f"a null space is measured on the data of all earlier domains, and the recipe has none of "
                f"{', '.join(unknown)}; list these domains, or set null_space to null"
            )

        def measure() -> Made:
            share = -(-config.samples // len(known))
            examples = [e for d in known for e in self.encoded(d, "selection")[:share]]
            sources = self._frozen.all_on()
            with working("measuring the null space"):
                space = null_space.measure_examples(
                    model, self._workshop.hooks, sources, examples, config, known
                )
            return space.to_tensors(), {"facts": space.facts()}

        found = self._kept(self._run.domain(domain) / "null-space", measure)
        here = {name: tensor.to(self._workshop.base.device) for name, tensor in found.tensors.items()}
        return NullSpace.from_tensors(here, found.state["facts"])

    def _kept(self, directory: Path, make: Callable[[], Made]) -> checkpoint.Checkpoint:
        """What `make` gives, made once a run; always as read from disk, so that a resumed run has the same.

        Raises:
            CorruptBlob: it was written, and cannot be read.
        """
        missing = checkpoint.load(directory) is None
        self._workshop.accelerator.wait_for_everyone()  # all look before one of them writes
        if missing:
            tensors, state = make()
            self._on_main(lambda: checkpoint.save(directory, tensors, state))
        found = checkpoint.load(directory)
        if found is None:
            raise CorruptBlob(f"{directory.name} of the run was written and does not verify; check the disk")
        return found

    def _on_main(self, write: Callable[[], object]) -> None:
        """Let the main process write what all of them will read."""
        if self._workshop.accelerator.is_main_process:
            write()
        self._workshop.accelerator.wait_for_everyone()

    # --- the stack -------------------------------------------------------------------------------

    def _freeze(
        self,
        domain: DomainRecipe,
        rounds: Sequence[RoundResult],
        train: Sequence[Example],
        validation: Sequence[Example],
        space: NullSpace | None,
    ) -> None:
        """Write the finished stack. Its validation losses are those with the stacks it was trained with."""
        model, hooks = self._workshop.base.model, self._workshop.hooks
        alone = self._recipe.earlier_stacks == "none"
        earlier = [] if alone else self._frozen.all_on()
        own = self._bank_of(domain.name, rounds).bind([{domain.name: 1.0}])
        before = mean_nll(model, hooks, validation, earlier)
        after = mean_nll(model, hooks, validation, (*earlier, own))
        self._report(f"{domain.name}: validation {before:.4f} -> {after:.4f} nats")
        losses = [_losses(result) for result in rounds]
        losses[0]["validation_before"], losses[-1]["validation_after"] = _finite(before), _finite(after)
        identity, signature = self._workshop.base.identity, make_signature(self._workshop.base, train)
        metadata = StackMetadata(
            domain=domain.name,
            rounds=len(rounds),
            config=self._stack_config(),
            dims={projection: identity.dims[projection] for projection in self._recipe.stack.projections},
            base=identity.ref,
            null_space=space.facts() if space is not None else None,
            predecessors=() if alone else tuple(self._frozen.predecessors),
            data=self._records[domain.name].sources,
            hyperparameters=self._hyperparameters(domain),
            seed=self._recipe.round.seed,
            losses=tuple(losses),
            tool_versions=tool_versions(),
            licence=domain.licence,
            description=domain.description,
            signature=signature.config if signature is not None else None,
        )
        tensors = _named(rounds) | (signature.tensors() if signature is not None else {})

        def write() -> None:
            file = save_stack(self._run.stack(domain.name), metadata, tensors)
            atomic_write(self._run.stack_digest(domain.name), file.digest + "\n")

        self._on_main(write)

    def _hyperparameters(self, domain: DomainRecipe) -> dict[str, Any]:
        recipe = self._recipe
        return {
            **dataclasses.asdict(recipe.round_of(domain, 0)),
            "quantization": recipe.quantization,
            "compute": self._workshop.base.dtype_name,
            "max_tokens": recipe.data.max_tokens,
            "packing": recipe.data.packing,
            "splits": {name: getattr(recipe.data, name) for name in SPLITTING},
            "max_rounds": recipe.rounds_of(domain),
            "min_gain": recipe.min_gain,
            "earlier_stacks": recipe.earlier_stacks,
        }

    def _bank_of(self, domain: str, rounds: Sequence[RoundResult]) -> StackBank:
        """A bank of the domain's own frozen rounds."""
        base = self._workshop.base
        bank = StackBank(base.device, base.dtype)
        if rounds:
            bank.add(domain, StackTensors(self._stack_config(), len(rounds), _named(rounds)))
        return bank

    def _stack_config(self) -> StackConfig:
        return self._recipe.stack.config(self._workshop.base.identity.layers)


def _losses(result: RoundResult) -> dict[str, Any]:
    return {
        "selection_before": result.baseline,
        "selection_after": result.best,
        "stopped": result.stopped,
        "history": [{name: _finite(value) for name, value in point.items()} for point in result.history],
    }


def _finite(value: Any) -> Any:
    """`value`, or None: a round that diverged after its best snapshot has losses that have no JSON form."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _named(rounds: Sequence[RoundResult]) -> dict[str, Tensor]:
    """The tensors of all rounds, named as a stack file names them."""
    return {
        f"rounds.{n}.{name}": tensor
        for n, result in enumerate(rounds)
        for name, tensor in (result.tensors or {}).items()
    }
