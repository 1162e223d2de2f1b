"""What a request holds while it runs: one version of each stack of its composition."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from brainstacks.errors import BrainstacksError
from brainstacks.stacks.artifact import StackMetadata
from brainstacks.stacks.manifest import StackVersion

StackKey = tuple[str, int]
"""(domain, version): what weights and places are bound to."""


@dataclass(frozen=True)
class ServedStack:
    """One stack version that is served or in use, wherever its bytes are.

    Attributes:
        published: as the manifest lists it.
        nbytes: bytes that it takes on the device, packed.
    """

    domain: str
    published: StackVersion
    metadata: StackMetadata
    nbytes: int

    @property
    def version(self) -> int:
        return self.published.version

    @property
    def digest(self) -> str:
        return self.published.digest

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """The file's own metadata, as plain values."""
        return asdict(self.metadata)

    @property
    def key(self) -> StackKey:
        return (self.domain, self.version)


class Lease:
    """The stacks of one composition: their versions are fixed at once, and once `ready` all are on the device
    and stay there until the lease is released.

    Args:
        stacks: domain -> version.
        on_change: called once, on any thread, when the lease becomes ready or fails after it was given out.

    Attributes:
        granted: it has room for all of them.
        missing: those that have not come yet.
        error: why it failed.
    """

    def __init__(
        self, stacks: Mapping[str, ServedStack], on_change: Callable[[], None] | None = None
    ) -> None:
        self.stacks = stacks
        self.keys = tuple(stack.key for stack in stacks.values())
        self.granted = False
        self.missing = set(self.keys)
        self.error: BrainstacksError | None = None
        self._on_change = on_change
        self._over = threading.Event()

    @property
    def over(self) -> bool:
        """Its wait has ended: it is ready, or has failed."""
        return self._over.is_set()

    @property
    def ready(self) -> bool:
        """All of its stacks are on the device."""
        return self.over and self.error is None

    def wait(self) -> None:
        """Block until the lease is ready. Raises what made it fail."""
        self._over.wait()
        if self.error is not None:
            raise self.error

    def end_wait(self, error: BrainstacksError | None = None) -> None:
        """It is ready, or has failed with `error`. Called once, by the cache."""
        self.error = error
        self._over.set()

    def notify(self) -> None:
        if self._on_change is not None:
            self._on_change()
