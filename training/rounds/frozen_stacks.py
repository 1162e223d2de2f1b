"""The stacks that are frozen so far: on the device, in order, each with its digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brainstacks.base_model import BaseModel
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import DeltaSource
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import Predecessor, StackMetadata, check_base, inspect_stack
from brainstacks.stacks.tensors import load_stack


@dataclass(frozen=True)
class StackFile:
    """A stack's file, read."""

    metadata: StackMetadata
    tensors: StackTensors
    digest: str


def read_stack(path: Path) -> StackFile:
    """Raises CorruptBlob and what `load_stack` raises: it is no sound stack file."""
    found = inspect_stack(path)
    return StackFile(found.metadata, load_stack(path), found.digest)


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

    def hold(self, stack: StackFile) -> str:
        """Take in `stack`; its domain.

        Raises:
            IncompatibleArtifact: it was made for another base.
        """
        metadata = stack.metadata
        check_base(metadata, self._identity.fingerprint, self._identity.dims, self._identity.layers)
        self.bank.add(metadata.domain, stack.tensors)
        self.predecessors.append(Predecessor(metadata.domain, stack.digest))
        return metadata.domain

    def all_on(self) -> Sequence[DeltaSource]:
        """Every stack at 1.0, for batches of any number of rows."""
        return [self.bank.bind([dict.fromkeys(self.domains, 1.0)])] if self.predecessors else []
