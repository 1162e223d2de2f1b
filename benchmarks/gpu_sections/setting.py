"""How large everything is: on a GPU, or in a rehearsal on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brainstacks.config import Backend


@dataclass(frozen=True)
class Setting:
    """What all sections are made for.

    Attributes:
        scratch: a directory that they share, which outlives them.
        rehearse: on the CPU, with interpreted kernels, at sizes that mean nothing: it is the benchmark's own
            code that runs.
        seed: of prompts, stacks and weights.
        backend: what is looked at; a quick look at the benchmark's own code takes one that nobody interprets.
    """

    scratch: Path
    rehearse: bool = False
    seed: int = 0
    backend: Backend = "cuda"

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def batches(self) -> tuple[int, ...]:
        """Numbers of rows that decode together."""
        return (2,) if self.rehearse else (1, 8, 32, 64)

    @property
    def profiled(self) -> tuple[int, ...]:
        """Those whose kernels are timed."""
        return (2,) if self.rehearse else (1, 32)

    @property
    def prompt(self) -> int:
        """Tokens of a decode row's prompt."""
        return 4 if self.rehearse else 32

    @property
    def prefills(self) -> tuple[int, ...]:
        """Tokens of the prompts that are only read."""
        return (8,) if self.rehearse else (512, 2048)

    @property
    def tokens(self) -> int:
        """That a row decodes in one run."""
        return 2 if self.rehearse else 32

    @property
    def rounds(self) -> int:
        return 1 if self.rehearse else 3

    @property
    def context(self) -> int:
        """Most tokens of a row."""
        return 64 if self.rehearse else 4096
