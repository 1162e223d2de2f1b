"""The curriculum: train each domain, freeze it as one file, publish it (paper, section 3.4).

A run keeps every finished round and stack, and checkpoints of the round on its way, in its directory:
started anew after whatever ended it, it goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from brainstacks.base_model import BaseModel
from brainstacks.durable import atomic_write
from brainstacks.errors import BrainstacksError, ConfigError
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.registry import Registry
from training.curriculum.domain import DomainTraining
from training.curriculum.forgetting import ForgettingMatrix, measure_row
from training.data.domains import DomainData, check_data, has_directory, prepare
from training.progress import working
from training.recipe.recipe import DomainRecipe, Recipe
from training.reinforce.items import StageRecords, load_stages, stages_identity
from training.rounds.compute import choose, load_as_stored
from training.rounds.device import joined
from training.rounds.frozen_stacks import FrozenStacks, read_stack
from training.rounds.optimizer import settled
from training.rounds.workshop import Workshop
from training.runs.directory import RunDirectory
from training.runs.log import NoLog, RunLog
from training.runs.processes import Processes
from training.runs.provenance import data_identity, environment, tool_versions
from training.runs.signals import StopRequest
from training.runs.stored import read_json

Report = Callable[[str], None]


class PrefixChanged(BrainstacksError):
    """The zero-forgetting guarantee does not hold: a frozen prefix computes something else."""

    default_code = "prefix_changed"


def run_curriculum(
    recipe: Recipe,
    registry: Registry,
    path: Path,
    data: Path | None = None,
    report: Report = print,
    device: str = "auto",
) -> tuple[str, ...]:
    """Train and publish every domain of `recipe`, in order.

    Args:
        path: the run's directory.
        data: directory with `<domain>/{train,validation}.jsonl`, in place of the recipe's sources.
        device: see `training.rounds.device.joined`.

    Returns:
        the domains that learned nothing, and were not published.

    Raises:
        ConfigError: the run in `path` was started with another recipe, base or data, or is going on; the
            device is not there; several processes were started, and cannot share its steps.
        Interrupted: a stop was asked for; start again to go on.
        StorageFull: no room; make some, and start again.
    """
    with _open(recipe, path, data, "curriculum", report, device) as curriculum:
        return tuple(d.name for d in recipe.domains if not curriculum.take_in(d, registry))


def run_stack(
    recipe: Recipe,
    domain: str,
    registry: Registry,
    path: Path,
    data: Path | None = None,
    report: Report = print,
    device: str = "auto",
) -> tuple[str, ...]:
    """Train one domain of `recipe` on top of what `registry` serves, and publish it: add a skill.

    Of the other domains no data is needed. What `data` holds of them is used to measure them again.
    Arguments, result and errors are those of `run_curriculum`.
    """
    new = recipe.domain(domain)
    served, _ = registry.snapshot().serving
    earlier = {other: digest for other, digest in served.items() if other != domain}
    command = {"stack": domain, "on top of": earlier}
    with _open(recipe, path, data, command, report, device, new) as curriculum:
        for digest in earlier.values():
            curriculum.hold(registry.blob_path(digest))
        return () if curriculum.take_in(new, registry) else (domain,)


@contextmanager
def _open(
    recipe: Recipe,
    path: Path,
    data: Path | None,
    command: Any,
    report: Report,
    device: str,
    only: DomainRecipe | None = None,
) -> Iterator[_Curriculum]:
    """Hold the run's directory, and load the base and the data, while the `with` lasts.

    Args:
        only: the one domain that is trained.
    """
    run = RunDirectory(path)
    for domain in recipe.domains:
        run.domain(domain.name)  # refuses a name that the run needs for itself
    with joined(device) as processes, ExitStack() as resources:
        _check_shared(recipe, processes)
        report = processes.reporting(report)
        stop = resources.enter_context(StopRequest())
        # Before anything large is loaded a second time.
        processes.on_first(lambda: resources.enter_context(run))
        records = prepare(recipe, data, recipe.domains if only is None else _needed(recipe, only, data))
        processes.check_same("data", data_identity(records))
        trained = recipe.domains if only is None else (only,)
        stages = load_stages(recipe, records, trained, processes.count)
        with working("loading the base"):
            base = load_as_stored(recipe, str(processes.device))
        recipe = dataclasses.replace(recipe, round=settled(recipe.round, base.device))
        check_data(recipe, records, base.chat_tokenizer())
        compute = processes.first(lambda: choose(base, recipe.compute, run.compute(), backward=True))
        report(str(compute))
        identity = _identity(recipe, command, base, compute.dtype, records, stages)
        processes.check_same("recipe, base or tools", identity)
        processes.on_first(lambda: run.check_identity(identity))
        base = compute.of(base)
        hooks = CompositionHooks(base.sites)
        hooks.attach()
        resources.callback(hooks.detach)
        log = resources.enter_context(RunLog(path)) if processes.is_first else NoLog()
        workshop = Workshop(processes, base, hooks, log, stop)
        yield _Curriculum(recipe, workshop, run, records, stages, report)


def _check_shared(recipe: Recipe, processes: Processes) -> None:
    """Raises ConfigError: a process would have none of a step's forwards."""
    forwards, rows = recipe.round.accumulation, recipe.round.batch_size
    if forwards < processes.count:
        raise ConfigError(
            f"{processes.count} processes cannot share a step's {forwards} forward(s) (round.accumulation), "
            f"each of {rows} row(s) (round.batch_size); start at most {forwards}, or make them more and "
            "smaller: a step has as many rows as the two multiplied"
        )


def _needed(recipe: Recipe, domain: DomainRecipe, data: Path | None) -> tuple[DomainRecipe, ...]:
    """Whose data is read where `domain` alone is trained: its own, and of others what the directory `data`
    holds; everyone's where they decide what it learns."""
    if recipe.null_space is not None or recipe.data.contamination != "report":
        return recipe.domains
    return tuple(d for d in recipe.domains if d == domain or has_directory(d, data))


def _identity(
    recipe: Recipe,
    command: Any,
    base: BaseModel,
    compute: str,
    records: Mapping[str, DomainData],
    stages: Mapping[str, Sequence[StageRecords]],
) -> dict[str, Any]:
    """What the stacks of a run depend on: what `compute: auto` chose, and none of the router's settings. Of a
    domain without stages it says nothing about them: a run of before there were any goes on."""
    settings = dataclasses.asdict(recipe)
    del settings["router"], settings["compute"]
    for domain in settings["domains"]:
        if not domain["rl"]:
            del domain["rl"]
    found = {
        "command": command,
        "recipe": settings,
        "base": base.identity.fingerprint,
        "compute": compute,
        "data": data_identity(records),
        "tools": tool_versions(),
    }
    return {**found, "stages": stages_identity(stages)} if stages else found


class _Curriculum:
    """A run on its way: what is frozen so far, and how the next domain is added to it."""

    def __init__(
        self,
        recipe: Recipe,
        workshop: Workshop,
        run: RunDirectory,
        records: Mapping[str, DomainData],
        stages: Mapping[str, Sequence[StageRecords]],
        report: Report,
    ) -> None:
        self._recipe, self._workshop, self._run = recipe, workshop, run
        self._processes = workshop.processes
        self._records, self._report = records, report
        self._frozen = FrozenStacks(workshop.base)
        self._training = DomainTraining(recipe, workshop, run, self._frozen, records, stages, report)
        self._forgetting = self._processes.first(self._known_forgetting)

    def take_in(self, domain: DomainRecipe, registry: Registry) -> bool:
        """Train `domain` unless that is done; hold and publish it. False when it learned nothing."""
        self._workshop.stop_here_if_asked(f"before {domain.name}")
        if self._training.finished(domain.name):
            self._training.skip(domain)
            self._report(f"{domain.name}: finished before")
        else:
            self._training.train(domain)
        path = self._run.stack(domain.name)
        if not self._processes.first(path.is_file):
            self._report(
                f"{domain.name}: no round gained min_gain ({self._recipe.min_gain:g} nats); nothing is "
                "frozen. More steps, another learning rate or other data may help"
            )
            return False
        self._processes.on_first(lambda: self._publish(path, domain.name, registry))
        self.hold(path)
        return True

    def _publish(self, path: Path, domain: str, registry: Registry) -> None:
        """Publish the stack once: whoever has since rolled it back, or replaced it, keeps what they have."""
        digest = sha256_file(path)
        history = registry.snapshot().domains.get(domain)
        if history is not None and any(version.digest == digest for version in history.versions):
            return
        published = registry.publish(path)
        self._report(f"{domain}: version {published.version}, digest {digest[:12]}")

    def hold(self, path: Path) -> None:
        """Put the frozen stack in the file `path` on the device, and measure what it does to earlier ones."""
        domain = self._frozen.hold(self._processes.first(lambda: read_stack(path)))
        if domain in self._records and domain not in self._forgetting.domains:
            self._measure_forgetting(domain)

    def _measure_forgetting(self, domain: str) -> None:
        """Add the row of `domain`, frozen last.

        Raises:
            PrefixChanged: an earlier prefix loss is not, bit for bit, what it was.
        """
        known = [d for d in self._frozen.domains if d in self._records]
        limit = self._recipe.data.forgetting
        examples = {d: self._training.encoded(d, "validation")[:limit] for d in known}
        base, hooks = self._workshop.base, self._workshop.hooks
        row = measure_row(
            base.model, hooks, self._frozen.bank, self._frozen.domains, examples, self._processes
        )
        self._forgetting = self._forgetting.add(domain, row)
        changed = self._forgetting.changed()
        if changed:
            raise PrefixChanged(
                f"the prefix loss of {', '.join(changed)} is not, bit for bit, what it was when frozen: the "
                "frozen stack, the base or the machine has changed; the stacks are published. Remove "
                f"{self._run.forgetting.name} from the run to measure all of it anew"
            )
        stacks = {p.domain: p.digest for p in self._frozen.predecessors}
        here = environment(base.device)
        document = {"environment": here, "stacks": stacks, **self._forgetting.to_dict()}
        text = json.dumps(document, indent=2) + "\n"
        self._processes.on_first(lambda: atomic_write(self._run.forgetting, text))

    def _known_forgetting(self) -> ForgettingMatrix:
        """What an earlier start measured; nothing where it computed in another way, and so other bits."""
        here = environment(self._workshop.base.device)
        document = read_json(self._run.forgetting)
        if document is None or document.pop("environment", None) != here:
            return ForgettingMatrix()
        return ForgettingMatrix.from_dict(document)
