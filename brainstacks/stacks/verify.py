"""Everything that a registry has published, checked completely: bytes, meaning, and the facts listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from brainstacks.errors import BrainstacksError, CorruptBlob
from brainstacks.stacks.artifact import inspect_stack
from brainstacks.stacks.manifest import ROUTER_ENTRY, History, StackVersion, V, Version
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import inspect_router


@dataclass(frozen=True)
class Problem:
    """A published version that cannot be served, and why."""

    name: str
    version: int
    digest: str
    message: str


def verify(registry: Registry) -> list[Problem]:
    """What is wrong with the versions in the stored manifest."""
    manifest = registry.reload()
    problems: list[Problem] = []
    for name, history in manifest.domains.items():
        problems += _verify(registry, name, history, _check_stack)
    if manifest.router is not None:
        problems += _verify(registry, ROUTER_ENTRY.name, manifest.router, _check_router)
    return problems


def _verify(
    registry: Registry, name: str, history: History[V], check: Callable[[Path, str, V], None]
) -> Iterator[Problem]:
    for version in history.versions:
        try:
            check(registry.blob_path(version.digest, anew=True), name, version)
        except BrainstacksError as error:
            yield Problem(name, version.version, version.digest, error.message)


def _check_stack(path: Path, name: str, version: StackVersion) -> None:
    stack = inspect_stack(path)
    config = stack.metadata.config
    found = (stack.metadata.domain, stack.bytes, stack.metadata.rounds, config.rank, config.experts)
    listed = (name, version.bytes, version.rounds, version.rank, version.experts)
    if found != listed:
        raise CorruptBlob(f"the manifest lists {listed} and the file says {found}; publish the file again")


def _check_router(path: Path, name: str, version: Version) -> None:
    router = inspect_router(path)
    if router.bytes != version.bytes:
        raise CorruptBlob(f"the manifest lists {version.bytes} bytes and the {name} has {router.bytes}")
