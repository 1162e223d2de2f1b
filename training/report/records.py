"""What is left of a run to tell about it: its directory, read as far as it is, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from brainstacks.errors import ConfigError
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import StackMetadata, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import RouterMetadata, read_router_metadata
from brainstacks.stacks.tensors import load_stack
from training.curriculum.forgetting import ForgettingMatrix
from training.evaluation.evaluation import Evaluation
from training.evaluation.expert_use import ExpertUse, load_expert_use
from training.evaluation.router import Transfer
from training.runs.checkpoint import STATE
from training.runs.directory import working_on
from training.runs.paths import RunPaths
from training.runs.stored import read_as, read_json, read_lines

T = TypeVar("T")

Line = Mapping[str, Any]
"""Of the log."""


@dataclass(frozen=True)
class RunRecords:
    """Each part is read once, when it is asked for; None where it does not exist yet.

    A run may be going on there.

    Raises, on every access:
        ConfigError: a file is damaged.
    """

    run: RunPaths
    registry: Registry

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Raises ConfigError: there is no run."""
        document: dict[str, Any] | None = read_json(self.run.identity)
        if document is None:
            raise ConfigError(
                f"{self.run.path.name!r} holds no run; give the --run of `brainstacks-train curriculum`"
            )
        return document

    @cached_property
    def logged(self) -> dict[str, list[list[Line]]]:
        """Domain -> rounds -> lines of the log, in the order they were written; without those of stages."""
        found: dict[str, dict[int, list[Line]]] = {}
        for line in read_lines(self.run.metrics):
            if line["kind"].startswith("reinforce"):
                continue
            found.setdefault(line["domain"], {}).setdefault(line["round"], []).append(line)
        return {domain: list(rounds.values()) for domain, rounds in found.items()}

    @cached_property
    def rounds(self) -> dict[str, list[dict[str, Any]]]:
        """Domain, in curriculum order -> what the inner loop said of each finished round."""
        return self._finished(self.run.round)

    @cached_property
    def stages(self) -> dict[str, list[dict[str, Any]]]:
        """The same of each finished stage of `rl:`."""
        return self._finished(self.run.stage)

    @property
    def wants_stages(self) -> bool:
        return any(domain.get("rl") for domain in self.identity["recipe"]["domains"])

    def _finished(self, place: Callable[[str, int], Path]) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for domain in self.identity["recipe"]["domains"]:
            states: list[dict[str, Any]] = []
            while (state := read_json(place(domain["name"], len(states)) / STATE)) is not None:
                states.append(state)
            if states:
                found[domain["name"]] = states
        return found

    @cached_property
    def unfinished(self) -> str | None:
        """How far a run is that has not done all of its command, for people; None of one that has."""
        recipe, command = self.identity["recipe"], self.identity["command"]
        named = [domain["name"] for domain in recipe["domains"]]
        wanted = named if command == "curriculum" else [command["stack"]]
        left = [domain for domain in wanted if not self._done(domain, recipe["min_gain"])]
        if not left:
            return None
        going_on = working_on(self.run)
        state = "going on" if going_on else "stopped"
        last = next(iter(reversed(read_lines(self.run.metrics))), None)
        place = (
            "" if last is None else f" at step {last['step']} of {last['domain']}, round {last['round'] + 1}"
        )
        advice = "" if going_on else "; the same command goes on"
        return f"{state}{place}: {', '.join(left)} not finished{advice}"

    def _done(self, domain: str, min_gain: float) -> bool:
        """Its stack is there, or its first round gained too little for one, and its stages nothing."""
        (stages,) = [d.get("rl", ()) for d in self.identity["recipe"]["domains"] if d["name"] == domain]
        first = next(iter(self.rounds.get(domain, ())), None)
        nothing = first is not None and not first["baseline"] - first["best"] >= min_gain
        nothing = nothing and len(self.stages.get(domain, ())) == len(stages)
        return nothing or self.run.stack(domain).is_file()

    @cached_property
    def unrouted(self) -> list[str]:
        """Domains whose served stacks the router of the registry was not trained with."""
        router = self.router
        return (
            [] if router is None else [d for d, digest in self._served.items() if not router.knows(d, digest)]
        )

    @cached_property
    def stacks(self) -> dict[str, tuple[StackMetadata, StackTensors]]:
        """What the registry serves on the run's base."""
        found = {}
        for domain, history in self.registry.snapshot().domains.items():
            path = self.registry.blob_path(history.current.digest)
            metadata = read_stack_metadata(path)
            if metadata.base.fingerprint == self.identity["base"]:
                found[domain] = (metadata, load_stack(path))
        return found

    @cached_property
    def forgetting(self) -> ForgettingMatrix | None:
        return read_as(self.run.forgetting, ForgettingMatrix.from_dict)

    @cached_property
    def expert_use(self) -> dict[str, ExpertUse] | None:
        """Of the stacks that the registry serves."""
        every = load_expert_use(self.run.expert_use)
        return {d: use for d, use in every.items() if self._served.get(d) == use.digest} or None

    @cached_property
    def evaluation(self) -> Evaluation | None:
        return self._evaluated(Evaluation.from_dict)

    @cached_property
    def transfer(self) -> Transfer | None:
        return self._evaluated(lambda document: Transfer.from_dict(document["transfer"]))

    @cached_property
    def lm_eval(self) -> dict[str, Any] | None:
        """What was asked of lm-eval, and `results`: mode -> task -> metric -> value."""
        return self._evaluated(lambda document: document.get("lm_eval"))

    def _evaluated(self, parse: Callable[[Any], T]) -> T | None:
        """`parse` of what was evaluated; None where that was of other stacks, or another router, than the
        registry serves now."""
        serving = self.registry.snapshot().serving

        def current(document: Any) -> T | None:
            return parse(document) if (document["stacks"], document.get("router")) == serving else None

        return read_as(self.run.evaluation, current)

    @cached_property
    def _served(self) -> dict[str, str]:
        """Domain -> digest."""
        return self.registry.snapshot().serving[0]

    @cached_property
    def router(self) -> RouterMetadata | None:
        """What the registry serves on the run's base."""
        history = self.registry.snapshot().router
        if history is None:
            return None
        metadata = read_router_metadata(self.registry.blob_path(history.current.digest))
        return metadata if metadata.base.fingerprint == self.identity["base"] else None
