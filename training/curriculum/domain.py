"""Train one domain: its residual rounds, where they may write, and the stack that they freeze into."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.durable import atomic_write
from brainstacks.errors import ConfigError
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import DeltaSource
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import DataSource, StackMetadata
from brainstacks.stacks.tensors import save_stack
from training.curriculum.freezing import finite, hyperparameters, losses_of, named, signed
from training.data.domains import DomainData
from training.data.encoding import Example, encode
from training.progress import working
from training.recipe.recipe import DomainRecipe, Recipe
from training.reinforce.items import StageRecords
from training.reinforce.stage import StageResult
from training.reinforce.stages import stage_task, train_stage, with_effects
from training.rounds import null_space
from training.rounds.earlier_stacks import EarlierStacks
from training.rounds.frozen_stacks import FrozenStacks
from training.rounds.inner_loop import train_round
from training.rounds.null_space import NullSpace
from training.rounds.objective import mean_nll
from training.rounds.task import RoundResult, RoundTask
from training.rounds.workshop import Workshop
from training.runs import checkpoint
from training.runs.directory import RunDirectory
from training.runs.kept import Kept, Made
from training.runs.provenance import tool_versions

Report = Callable[[str], None]


class DomainTraining:
    """How every domain of a run is trained.

    Args:
        frozen: the stacks of earlier domains; grows while the run goes on.
        records: the data of every domain of the recipe.
        stages: domain -> what each of its stages of `rl:` learns from.
    """

    def __init__(
        self,
        recipe: Recipe,
        workshop: Workshop,
        run: RunDirectory,
        frozen: FrozenStacks,
        records: Mapping[str, DomainData],
        stages: Mapping[str, Sequence[StageRecords]],
        report: Report,
    ) -> None:
        self._recipe, self._workshop, self._run = recipe, workshop, run
        self._frozen, self._records, self._stages, self._report = frozen, records, stages, report
        self._processes = workshop.processes
        self._kept = Kept(self._processes)
        self._tokenizer = workshop.base.chat_tokenizer()
        self._log_position = 0

    def encoded(self, domain: str, split: str) -> list[Example]:
        """The examples of one split of `domain`: one of `training.data.domains.SPLITS`."""
        return encode(getattr(self._records[domain], split), self._tokenizer, self._recipe.data.max_tokens)

    def finished(self, domain: str) -> bool:
        """Whether its stack is there, as it was written. One that is not is removed, with a warning."""
        return self._processes.first(lambda: self._run.whole_stack(domain))

    def skip(self, domain: DomainRecipe) -> None:
        """Leave the log of a domain that an earlier start finished as it is."""
        rounds = [self._run.round(domain.name, n) for n in range(self._recipe.rounds_of(domain))]
        for path in (*rounds, *(self._run.stage(domain.name, n) for n in range(len(domain.rl)))):
            found = self._kept.read(path)
            if found is not None:
                self._log_position = found.state["log_position"]

    def train(self, domain: DomainRecipe) -> None:
        """Train the rounds of `domain` and write its stack; no file when none of them helped."""
        train, selection = self.encoded(domain.name, "train"), self.encoded(domain.name, "selection")
        validation = self.encoded(domain.name, "validation")
        self._report(self._told(domain.name, train))
        mode, seed = self._recipe.earlier_stacks, self._recipe.round.seed
        space = self._null_space(domain.name)
        first = RoundTask(
            domain=domain.name,
            number=0,
            stack=self._stack_config(),
            train=train,
            selection=selection,
            data=self._recipe.data,
            config=self._recipe.round_of(domain, 0),
            earlier=EarlierStacks(self._frozen.bank, self._frozen.domains, mode, seed),
            null_space=space,
        )
        rounds = self._rounds(domain, first)
        for place in range(len(domain.rl)):
            self._workshop.stop_here_if_asked(f"before stage {place + 1} of {domain.name}")
            result = self._stage(domain, place, first, rounds)
            if result.tensors is not None:
                rounds.append(result)
        if rounds:
            self._freeze(domain, rounds, train, validation, space)

    def _rounds(self, domain: DomainRecipe, first: RoundTask) -> list[RoundResult]:
        """The residual rounds of `domain` that gained enough."""
        rounds: list[RoundResult] = []
        for number in range(self._recipe.rounds_of(domain)):
            self._workshop.stop_here_if_asked(f"before {domain.name}, round {number + 1}")
            config, own = self._recipe.round_of(domain, number), self._own(domain.name, rounds)
            result = self._round(dataclasses.replace(first, number=number, config=config, own=own))
            self._report(
                f"{domain.name}, round {number + 1}: selection {result.baseline:.4f} -> {result.best:.4f} "
                f"nats; {result.stopped}"
            )
            if result.tensors is None or result.baseline - result.best < self._recipe.min_gain:
                break
            rounds.append(result)
        return rounds

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
            return self._made(train_round(self._workshop, task, checkpoints, self._log_position))

        found = self._kept.once(self._run.round(task.domain, task.number), train)
        tensors, state = self._taken(found, checkpoints)
        return RoundResult(tensors, **state)

    def _stage(
        self, domain: DomainRecipe, place: int, first: RoundTask, rounds: Sequence[RoundResult]
    ) -> StageResult:
        """The same of one stage of `rl:`, on top of `rounds`."""
        checkpoints = self._run.checkpoints(domain.name) / f"reinforce-{place}"
        own = self._own(domain.name, rounds)

        def train() -> Made:
            number, config = self._recipe.rounds_of(domain) + place, self._recipe.stage_of(domain, place)
            round = dataclasses.replace(first, number=number, config=config, own=own)
            task = stage_task(
                round, domain.rl[place], place, self._stages[domain.name][place], self._tokenizer
            )
            result = train_stage(self._workshop, task, checkpoints, self._log_position)
            if result.tensors is not None:  # what it does is measured of what is kept
                kept = dataclasses.replace(result, tensors=self._made(result)[0])
                after = self._own(domain.name, [*rounds, kept])
                compositions = [[*self._frozen.all_on(), *sources] for sources in (own, after)]
                result = with_effects(self._workshop, task, result, self._reported(), compositions)
            return self._made(result)

        tensors, state = self._taken(self._kept.once(self._run.stage(domain.name, place), train), checkpoints)
        result = StageResult(tensors, **state)
        for line in result.told(f"{domain.name}, stage {place + 1}"):
            self._report(line)
        return result

    def _reported(self) -> dict[str, list[Example]]:
        """Domain -> the validation examples that a stage's effects are measured on."""
        limit = self._recipe.data.forgetting
        return {domain: self.encoded(domain, "validation")[:limit] for domain in self._records}

    def _made(self, result: RoundResult) -> Made:
        """`result` as it is kept, its tensors in the file's dtype."""
        tensors = {name: tensor.to(self._dtype) for name, tensor in (result.tensors or {}).items()}
        state = {k: v for k, v in vars(result).items() if k != "tensors"}
        return tensors, {**state, "log_position": self._workshop.log.position}

    def _taken(
        self, found: checkpoint.Checkpoint, checkpoints: Path
    ) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
        """Tensors and state of a result, whose checkpoints go."""
        self._processes.on_first(lambda: checkpoint.prune(checkpoints, keep=0))
        self._log_position = found.state["log_position"]
        return found.tensors or None, {k: v for k, v in found.state.items() if k != "log_position"}

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
                    model, self._workshop.hooks, sources, examples, config, self._recipe.stack.applies, known
                )
            return space.to_tensors(), {"facts": space.facts()}

        found = self._kept.once(self._run.domain(domain) / "null-space", measure)
        here = {name: tensor.to(self._workshop.base.device) for name, tensor in found.tensors.items()}
        return NullSpace.from_tensors(here, found.state["facts"])

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
        base, hooks, recipe = self._workshop.base, self._workshop.hooks, self._recipe
        alone = recipe.earlier_stacks == "none"
        earlier = [] if alone else self._frozen.all_on()
        compositions = (earlier, (*earlier, *self._own(domain.name, rounds)))
        before, after = (
            mean_nll(base.model, hooks, validation, on, processes=self._processes) for on in compositions
        )
        self._report(f"{domain.name}: validation {before:.4f} -> {after:.4f} nats")
        losses = [losses_of(result) for result in rounds]
        losses[0]["validation_before"], losses[-1]["validation_after"] = finite(before), finite(after)
        signature = signed(base, recipe, domain.name, train, self._report)
        metadata = StackMetadata(
            domain=domain.name,
            rounds=len(rounds),
            config=self._stack_config(),
            dims={projection: base.identity.dims[projection] for projection in recipe.stack.projections},
            base=base.identity.ref,
            null_space=space.facts() if space is not None else None,
            predecessors=() if alone else tuple(self._frozen.predecessors),
            data=self._sources(domain.name),
            hyperparameters=hyperparameters(recipe, domain, base.dtype_name),
            seed=recipe.round.seed,
            losses=tuple(losses),
            tool_versions=tool_versions(),
            licence=domain.licence,
            description=domain.description,
            signature=signature.config if signature is not None else None,
        )
        tensors = named(rounds) | (signature.tensors() if signature is not None else {})

        def write() -> None:
            file = save_stack(self._run.stack(domain.name), metadata, tensors)
            atomic_write(self._run.stack_digest(domain.name), file.digest + "\n")

        self._processes.on_first(write)

    def _sources(self, domain: str) -> tuple[DataSource, ...]:
        """Files that the domain's stack learnt from."""
        stages = self._stages.get(domain, ())
        return (*self._records[domain].sources, *(s for stage in stages for s in stage.sources))

    def _own(self, domain: str, rounds: Sequence[RoundResult]) -> list[DeltaSource]:
        """The domain's own frozen rounds, on at 1.0; none where there are none."""
        if not rounds:
            return []
        base = self._workshop.base
        bank = StackBank(base.device, base.dtype)
        bank.add(domain, StackTensors(self._stack_config(), len(rounds), named(rounds)))
        return [bank.bind([{domain: 1.0}])]

    @property
    def _dtype(self) -> torch.dtype:
        """Of the file."""
        found: torch.dtype = getattr(torch, self._recipe.stack.dtype)
        return found

    def _stack_config(self) -> StackConfig:
        return self._recipe.stack.config(self._workshop.base.identity.layers)
