"""What a run makes once, and reads back wherever it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from brainstacks.errors import CorruptBlob
from training.runs import checkpoint
from training.runs.processes import Processes

Made = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors and JSON state."""


class Kept:
    """Directories that the first process writes and reads, for all of them."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def once(self, directory: Path, make: Callable[[], Made]) -> checkpoint.Checkpoint:
        """What `make` gives, made once a run; always as read from disk, so that a resumed run has the same.

        Raises:
            CorruptBlob: it was written, and cannot be read.
        """
        found = self.read(directory)
        if found is None:
            tensors, state = make()
            self._processes.on_first(lambda: checkpoint.save(directory, tensors, state))
            found = self.read(directory)
        if found is None:
            raise CorruptBlob(f"{directory.name} of the run was written and does not verify; check the disk")
        return found

    def read(self, directory: Path) -> checkpoint.Checkpoint | None:
        """See `checkpoint.load`."""
        return self._processes.first(lambda: checkpoint.load(directory))
