"""What a request holds while it runs: one version of each stack of its composition."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from brainstacks.errors import BrainstacksError
from brainstacks.stacks.artifact import StackMetadata
from brainstacks.stacks.manifest import StackVersion

StackKey = tuple[str, int]
"""(domain, version): what weights and residency are bound to."""


@dataclass(frozen=True)
class Resident:
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

    @property
    def key(self) -> StackKey:
        return (self.domain, self.version)


class Lease:
    """The stacks of one composition: their versions are fixed at once, and once `ready` all are on the device
    and stay there until the lease is released.

    Args:
        residents: domain -> version.
        on_change: called once, on any thread, when the lease becomes ready or fails after it was given out.
    """

    def __init__(
        self, residents: Mapping[str, Resident], on_change: Callable[[], None] | None = None
    ) -> None:
        self.residents = residents
        self.error: BrainstacksError | None = None
        self.missing = {resident.key for resident in residents.values()}
        self.granted = False
        self._on_change = on_change
        self._settled = threading.Event()

    @property
    def keys(self) -> tuple[StackKey, ...]:
        return tuple(resident.key for resident in self.residents.values())

    @property
    def ready(self) -> bool:
        """All of its stacks are on the device."""
        return self._settled.is_set() and self.error is None

    def wait(self) -> None:
        """Block until the lease is ready. Raises what made it fail."""
        self._settled.wait()
        if self.error is not None:
            raise self.error

    def settle(self, error: BrainstacksError | None = None) -> None:
        """It is ready, or has failed with `error`. Called once, by the tiers."""
        self.error = error
        self._settled.set()

    def notify(self) -> None:
        if self._on_change is not None:
            self._on_change()
