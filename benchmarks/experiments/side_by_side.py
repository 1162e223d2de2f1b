"""Trainings side by side: processes that each have a base of their own, on one device.

A small base leaves a GPU waiting for the host to launch its kernels; several processes fill the gaps.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.trainings import Training
from training.rounds.allocator import keep_freed_memory
from training.runs.signals import Interrupted, StopRequest

LOOK = 0.5
"""Seconds between two looks at whether a stop was asked for."""


class SideBySide:
    """Trains what is given in so many processes; within it, they and their bases stay.

    Args:
        kept: the laboratory's directory, which the trainings end up in, and which says what the first process
            chose to compute in.
        stop: asked for, the processes write what they have, as one alone would.
    """

    def __init__(
        self, processes: int, settings: Settings, data: Path, kept: Path, device: str, stop: StopRequest
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop, self._stopping = stop, context.Event()
        threads = max(1, torch.get_num_threads() // processes)
        given = (settings, data, kept, device, self._stopping, threads)
        self._pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=given)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def trained(self, trainings: Sequence[Training]) -> Iterator[Training]:
        """Each training when it is in the laboratory's directory.

        Raises:
            Interrupted: a stop was asked for.
            ValueError: one builds on others, which two processes would both begin.
        """
        if any(training.builds_on for training in trainings):
            raise ValueError("trainings that build on others are not made side by side")
        waiting = {self._pool.submit(_train, training): training for training in trainings}
        while waiting:
            done, _ = wait(waiting, LOOK, FIRST_COMPLETED)
            if self._stop.requested:
                self._stopping.set()
                self._pool.shutdown(cancel_futures=True)
                raise Interrupted(f"stopped with {len(waiting)} trainings to do")
            for future in done:
                training = waiting.pop(future)
                if not future.result():
                    raise Interrupted(f"stopped at {training}")
                yield training


class _SharedStop(StopRequest):
    """Asked for by the first process, which alone takes signals."""

    def __init__(self, event: Event) -> None:
        self._event = event
        super().__init__()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    @requested.setter
    def requested(self, asked: bool) -> None:
        if asked:
            self._event.set()


_laboratory: Laboratory
"""Of a process of the pool."""


def _begin(settings: Settings, data: Path, kept: Path, device: str, stopping: Any, threads: int) -> None:
    global _laboratory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(threads)
    keep_freed_memory()
    materials = Materials(settings, data, kept, _SharedStop(stopping), device)
    _laboratory = Laboratory(materials, kept, lambda line: None)


def _train(training: Training) -> bool:
    """Whether it came to its end."""
    try:
        _laboratory.trained(training)
    except Interrupted:
        return False
    return True
