"""The stacks that are frozen so far: on the device, in order, each with its digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brainstacks.base_model import BaseModel
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import DeltaSource
from brainstacks.stacks.artifact import Predecessor, check_base, inspect_stack
from brainstacks.stacks.tensors import load_stack


class FrozenStacks:
    """Starts empty.

    Attributes:
        bank: the stacks, by domain.
        predecessors: domain and digest of each, in order.
    """

    def __init__(self, base: BaseModel) -> None:
        self._identity = base.identity
        self.bank = StackBank(base.device, base.dtype)
        self.predecessors: list[Predecessor] = []

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(p.domain for p in self.predecessors)

    def hold(self, path: Path) -> str:
        """Take in the stack in the file `path`; its domain.

        Raises:
            IncompatibleArtifact: it was made for another base.
        """
        file = inspect_stack(path)
        metadata = file.metadata
        check_base(metadata, self._identity.fingerprint, self._identity.dims, self._identity.layers)
        self.bank.add(metadata.domain, load_stack(path))
        self.predecessors.append(Predecessor(metadata.domain, file.digest))
        return metadata.domain

    def all_on(self) -> Sequence[DeltaSource]:
        """Every stack at 1.0, for batches of any number of rows."""
        return [self.bank.bind([dict.fromkeys(self.domains, 1.0)])] if self.predecessors else []
