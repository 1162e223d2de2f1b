"""What a run makes once, and reads back wherever it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from brainstacks.errors import CorruptBlob
from training.runs import checkpoint

Made = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors and JSON state."""


class Kept:
    """Directories that the main process writes and all processes read."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def once(self, directory: Path, make: Callable[[], Made]) -> checkpoint.Checkpoint:
        """What `make` gives, made once a run; always as read from disk, so that a resumed run has the same.

        Raises:
            CorruptBlob: it was written, and cannot be read.
        """
        missing = checkpoint.load(directory) is None
        self._accelerator.wait_for_everyone()  # all look before one of them writes
        if missing:
            tensors, state = make()
            self.on_main(lambda: checkpoint.save(directory, tensors, state))
        found = checkpoint.load(directory)
        if found is None:
            raise CorruptBlob(f"{directory.name} of the run was written and does not verify; check the disk")
        return found

    def on_main(self, write: Callable[[], object]) -> None:
        """Let the main process write what all of them will read."""
        if self._accelerator.is_main_process:
            write()
        self._accelerator.wait_for_everyone()
