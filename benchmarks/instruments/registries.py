"""The registry that a benchmark serves: random stacks, and a copy of a trained registry beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.instruments.random_stacks import publish_random_stacks
from benchmarks.instruments.timing import say
from brainstacks.base_identity import BaseIdentity
from brainstacks.errors import BrainstacksError
from brainstacks.stacks.artifact import StackFile, check_base
from brainstacks.stacks.registry import Registry

RESIDENT = 10
"""Random stacks that the issue's speed targets ask for."""


@dataclass(frozen=True)
class Served:
    """A registry of stacks for one base.

    Attributes:
        path: its directory, for a server.
        random, trained: its domains; no `trained` ones where the trained registry does not fit.
    """

    registry: Registry
    path: Path
    random: tuple[str, ...]
    trained: tuple[str, ...]

    @property
    def files(self) -> Mapping[str, Path]:
        """Of each domain's stack."""
        domains = self.registry.snapshot().domains
        return {name: self.registry.blob_path(history.current.digest) for name, history in domains.items()}


@contextmanager
def served(
    base: BaseIdentity,
    *,
    random: int = RESIDENT,
    rank: int = 16,
    trained: Path | None = None,
    seed: int = 0,
) -> Iterator[Served]:
    """A registry in a directory of its own, which goes with it.

    Args:
        random: how many random stacks, of `rank`.
        trained: a registry whose stacks and router are copied beside them; one that was trained for
            another base is left out, and a line says so.
    """
    with tempfile.TemporaryDirectory() as directory:
        registry = Registry(directory, create=True)
        copied = _copy(Registry(trained), registry, base) if trained is not None else ()
        names = publish_random_stacks(registry, base, random, rank=rank, seed=seed)
        yield Served(registry, Path(directory), names, copied)


def _copy(source: Registry, target: Registry, base: BaseIdentity) -> tuple[str, ...]:
    manifest = source.snapshot()
    if not manifest.domains:
        say("the trained registry is empty: its cases are left out")
        return ()

    def check(stack: StackFile) -> None:
        check_base(stack.metadata, base.fingerprint, base.dims, base.layers)

    try:
        for history in manifest.domains.values():
            target.publish(source.blob_path(history.current.digest), check=check)
    except BrainstacksError as error:
        say(f"the trained registry is left out: {error.message}")
        return ()
    if manifest.router is not None:
        target.publish_router(source.blob_path(manifest.router.current.digest))
    return tuple(manifest.domains)
