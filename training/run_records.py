"""What is left of a run to tell about it: its directory, read as far as it is, and the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from brainstacks.errors import ConfigError
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import StackMetadata, read_stack_metadata
from brainstacks.stacks.registry import Registry
from training.checkpoint import STATE
from training.evaluation import Evaluation
from training.expert_use import EXPERT_USE, ExpertUse, load_expert_use, stack_of
from training.forgetting import ForgettingMatrix
from training.run_directory import IDENTITY, RunDirectory

Line = Mapping[str, Any]
"""Of the log."""


@dataclass(frozen=True)
class RunRecords:
    """Each part is read once, when it is asked for; None where it does not exist yet.

    Attributes:
        run: not entered: a run may be going on there.

    Raises, on every access:
        ConfigError: a file is damaged.
    """

    run: RunDirectory
    registry: Registry

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Raises ConfigError: there is no run."""
        document: dict[str, Any] | None = _json(self.run.path / IDENTITY)
        if document is None:
            raise ConfigError(
                f"{self.run.path.name!r} holds no run; give the --run of `brainstacks-train curriculum`"
            )
        return document

    @cached_property
    def logged(self) -> dict[str, list[list[Line]]]:
        """Domain -> rounds -> lines of the log, in the order they were written."""
        found: dict[str, dict[int, list[Line]]] = {}
        for line in _lines(self.run.metrics):
            if "round" in line:
                found.setdefault(line["domain"], {}).setdefault(line["round"], []).append(line)
        return {domain: list(rounds.values()) for domain, rounds in found.items()}

    @cached_property
    def rounds(self) -> dict[str, list[dict[str, Any]]]:
        """Domain, in curriculum order -> what the inner loop said of each finished round."""
        domains = [domain["name"] for domain in self.identity["recipe"]["domains"]]
        found = {domain: self._finished(domain) for domain in domains}
        return {domain: states for domain, states in found.items() if states}

    def _finished(self, domain: str) -> list[dict[str, Any]]:
        states: list[dict[str, Any]] = []
        while (state := _json(self.run.round(domain, len(states)) / STATE)) is not None:
            states.append(state)
        return states

    @cached_property
    def stacks(self) -> dict[str, tuple[StackMetadata, StackTensors]]:
        """What the registry serves on the run's base."""
        found = {}
        for domain, history in self.registry.snapshot().domains.items():
            digest = history.current.digest
            metadata = read_stack_metadata(self.registry.blob_path(digest))
            if metadata.base.fingerprint == self.identity["base"]:
                found[domain] = (metadata, stack_of(self.registry, digest))
        return found

    @cached_property
    def forgetting(self) -> ForgettingMatrix | None:
        document = _json(self.run.forgetting)
        return None if document is None else ForgettingMatrix.from_dict(document)

    @cached_property
    def expert_use(self) -> dict[str, ExpertUse] | None:
        path = self.run.path / EXPERT_USE
        return load_expert_use(path) if path.is_file() else None

    @cached_property
    def evaluation(self) -> Evaluation | None:
        document = _json(self.run.evaluation)
        return None if document is None else Evaluation.from_dict(document)


def _json(path: Path) -> Any:
    """None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path.name} is no JSON ({error}); make it again, or remove it") from error


def _lines(path: Path) -> list[Line]:
    """The whole lines of a JSONL file: a run that is going on may be writing one more."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except ValueError as error:
        raise ConfigError(f"{path.name} has a line that is no JSON ({error}); remove that line") from error
