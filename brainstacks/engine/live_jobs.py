"""The requests that have not ended, and how they end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from brainstacks.device import reclaim
from brainstacks.engine.block_manager import BlockManager
from brainstacks.engine.jobs import Job
from brainstacks.errors import BrainstacksError, InvalidRequest
from brainstacks.stacks.loader import as_reply

log = logging.getLogger(__name__)


class LiveJobs:
    """Args:
    free: gives back all that a job holds; called once, when it ends.
    blocks: what a failed step may have spoilt.

    Attributes:
        failures: of steps, or of parts of one.
    """

    def __init__(self, free: Callable[[Job], None], blocks: BlockManager) -> None:
        self.failures = 0
        self._free = free
        self._blocks = blocks
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, key: str) -> bool:
        return key in self._jobs

    def __getitem__(self, key: str) -> Job:
        """By the key of its request."""
        return self._jobs[key]

    def __iter__(self) -> Iterator[Job]:
        """Those of now, whichever end meanwhile."""
        return iter(list(self._jobs.values()))

    def add(self, job: Job) -> None:
        self._jobs[job.request.key] = job

    def end(self, job: Job, reason: BrainstacksError | None = None) -> None:
        """Take a job out and tell it `reason`; does nothing when that has been done."""
        if self._jobs.pop(job.request.key, None) is None:
            return
        if reason is not None:
            job.sink(reason)
        self._free(job)

    @contextmanager
    def ending(self, jobs: Iterable[Job]) -> Iterator[None]:
        """What is raised within the block ends `jobs`, which are asked for then; everything else goes on."""
        try:
            yield
        except Exception as error:
            self.fail(list(jobs), error)

    def fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """`error` ends `jobs`: as `ending`, from where it is caught."""
        if isinstance(error, InvalidRequest):  # what was asked cannot be done; nothing failed
            for job in jobs:
                self.end(job, error)
            return
        self.failures += 1
        log.error("a step failed; %d requests end with it", len(jobs), exc_info=error)
        reclaim(error)
        for job in jobs:
            self.end(job, as_reply(error, "a step of this request"))
        self._blocks.forget()  # what the failed step computed may be wrong: nobody is to reuse it
