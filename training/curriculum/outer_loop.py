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

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from brainstacks.base_model import BaseModel
from brainstacks.durable import atomic_write
from brainstacks.errors import BrainstacksError
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.registry import Registry
from training.curriculum.domain import DomainTraining
from training.curriculum.forgetting import ForgettingMatrix, measure_row
from training.data.domains import DomainData, check_data, has_directory, prepare
from training.progress import silent, working
from training.recipe.recipe import DomainRecipe, Recipe
from training.reinforce.items import StageRecords, load_stages, stages_identity
from training.rounds.compute import Compute, choose, load_as_stored
from training.rounds.device import named
from training.rounds.frozen_stacks import FrozenStacks
from training.rounds.optimizer import settled
from training.rounds.workshop import Workshop, make_accelerator
from training.runs.directory import RunDirectory
from training.runs.log import NoLog, RunLog
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
        device: see `training.rounds.device.take_device`.

    Returns:
        the domains that learned nothing, and were not published.

    Raises:
        ConfigError: the run in `path` was started with another recipe, base or data, or is going on; the
            device is not there.
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
    accelerator = make_accelerator(device)
    main = accelerator.is_main_process
    run = RunDirectory(path)
    for domain in recipe.domains:
        run.domain(domain.name)  # refuses a name that the run needs for itself
    with ExitStack() as resources:
        stop = resources.enter_context(StopRequest())
        if main:
            resources.enter_context(run)  # before anything large is loaded a second time
        else:
            resources.enter_context(silent())
        records = prepare(recipe, data, recipe.domains if only is None else _needed(recipe, only, data))
        trained = recipe.domains if only is None else (only,)
        stages = load_stages(recipe, records, trained, accelerator.num_processes)
        with working("loading the base"):
            base = load_as_stored(recipe, named(accelerator.device))
        recipe = dataclasses.replace(recipe, round=settled(recipe.round, base.device))
        check_data(recipe, records, base.chat_tokenizer())
        compute = _compute(recipe, base, run, accelerator)
        if main:
            report(str(compute))
            run.check_identity(
                _identity(recipe, command, base, compute, records, stages, accelerator.num_processes)
            )
        base = compute.of(base)
        hooks = CompositionHooks(base.sites)
        hooks.attach()
        resources.callback(hooks.detach)
        log = resources.enter_context(RunLog(path)) if main else NoLog()
        workshop = Workshop(accelerator, base, hooks, log, stop)
        yield _Curriculum(recipe, workshop, run, records, stages, report if main else lambda line: None)


def _needed(recipe: Recipe, domain: DomainRecipe, data: Path | None) -> tuple[DomainRecipe, ...]:
    """Whose data is read where `domain` alone is trained: its own, and of others what the directory `data`
    holds; everyone's where they decide what it learns."""
    if recipe.null_space is not None or recipe.data.contamination != "report":
        return recipe.domains
    return tuple(d for d in recipe.domains if d == domain or has_directory(d, data))


def _compute(recipe: Recipe, base: BaseModel, run: RunDirectory, accelerator: Accelerator) -> Compute:
    """The main process's choice, in every process."""
    main = accelerator.is_main_process
    found = [choose(base, recipe.compute, run.compute(), backward=True) if main else None]
    chosen: Compute = broadcast_object_list(found)[0]
    return chosen


def _identity(
    recipe: Recipe,
    command: Any,
    base: BaseModel,
    compute: Compute,
    records: Mapping[str, DomainData],
    stages: Mapping[str, Sequence[StageRecords]],
    processes: int,
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
        "compute": compute.dtype,
        "data": data_identity(records),
        "processes": processes,
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
        self._records, self._report = records, report
        self._frozen = FrozenStacks(workshop.base)
        self._training = DomainTraining(recipe, workshop, run, self._frozen, records, stages, report)
        self._forgetting = self._known_forgetting()

    def take_in(self, domain: DomainRecipe, registry: Registry) -> bool:
        """Train `domain` unless that is done; hold and publish it. False when it learned nothing."""
        self._workshop.stop_here_if_asked(f"before {domain.name}")
        if self._training.finished(domain.name):
            self._training.skip(domain)
            self._report(f"{domain.name}: finished before")
        else:
            self._training.train(domain)
        path = self._run.stack(domain.name)
        if not path.is_file():
            self._report(
                f"{domain.name}: no round gained min_gain ({self._recipe.min_gain:g} nats); nothing is "
                "frozen. More steps, another learning rate or other data may help"
            )
            return False
        if self._workshop.accelerator.is_main_process:
            self._publish(path, domain.name, registry)
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
        domain = self._frozen.hold(path)
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
        row = measure_row(base.model, hooks, self._frozen.bank, self._frozen.domains, examples)
        self._forgetting = self._forgetting.add(domain, row)
        changed = self._forgetting.changed()
        if changed:
            raise PrefixChanged(
                f"the prefix loss of {', '.join(changed)} is not, bit for bit, what it was when frozen: the "
                "frozen stack, the base or the machine has changed; the stacks are published. Remove "
                f"{self._run.forgetting.name} from the run to measure all of it anew"
            )
        if self._workshop.accelerator.is_main_process:
            stacks = {p.domain: p.digest for p in self._frozen.predecessors}
            here = environment(base.device)
            document = {"environment": here, "stacks": stacks, **self._forgetting.to_dict()}
            atomic_write(self._run.forgetting, json.dumps(document, indent=2) + "\n")

    def _known_forgetting(self) -> ForgettingMatrix:
        """What an earlier start measured; nothing where it computed in another way, and so other bits."""
        here = environment(self._workshop.base.device)
        document = read_json(self._run.forgetting)
        if document is None or document.pop("environment", None) != here:
            return ForgettingMatrix()
        return ForgettingMatrix.from_dict(document)
