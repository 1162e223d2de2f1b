"""What a step gave, in two halves: what the next one depends on, and what readers are told."""

from __future__ import annotations

from collections.abc import Sequence

from brainstacks.engine import output
from brainstacks.engine.completion import Completion
from brainstacks.engine.jobs import Job
from brainstacks.engine.live_jobs import LiveJobs
from brainstacks.engine.request import FinishReason
from brainstacks.engine.runner.flight import Outcome
from brainstacks.engine.sampling.sampler import Sampled
from brainstacks.engine.scheduler import Scheduler
from brainstacks.errors import BrainstacksError


class Delivery:
    """Args:
    jobs, scheduler: of the engine.
    ends: the base's end-of-sequence tokens.
    """

    def __init__(self, jobs: LiveJobs, scheduler: Scheduler, ends: Sequence[int]) -> None:
        self._jobs = jobs
        self._scheduler = scheduler
        self._ends = ends
        self._accepted: list[tuple[Outcome, FinishReason | None]] = []  # what readers are still to be told

    def accept(self, outcome: Outcome) -> None:
        """Give a completion its token, and take it out of line where it ends with that; unless it has ended
        meanwhile: then the token is one too many."""
        completion, result = outcome.completion, outcome.result
        if completion.finish_reason is not None:
            return
        try:  # not `ending`: the device waits, and a context for each row takes longer than all else here
            if isinstance(result, BrainstacksError):
                raise result
            reason = output.accept(completion, result, self._ends) if result is not None else "length"
            if reason is not None:
                self._scheduler.finish(completion)
            self._accepted.append((outcome, reason))
        except Exception as error:
            self._jobs.fail([self._jobs[completion.request.key]], error)

    def tell(self) -> None:
        """Tell readers of all that was accepted since the last call."""
        accepted, self._accepted = self._accepted, []
        for outcome, reason in accepted:
            completion, result = outcome.completion, outcome.result
            if completion.finish_reason is not None:
                continue
            job = self._jobs[completion.request.key]
            with self._jobs.ending([job]):
                if outcome.scored:
                    job.announce(completion.prompt_logprobs)
                if isinstance(result, Sampled):
                    reason = output.spell(completion, result, self._ends, reason)
                if reason is None:
                    job.sink(output.text_event(completion))
                elif result is None:
                    self.finish_all(job, reason)
                else:
                    self._finish(job, completion, reason)

    def finish_all(self, job: Job, reason: FinishReason) -> None:
        """End all completions of a job, and with them the job."""
        for completion in list(job.completions):
            self._finish(job, completion, reason)

    def _finish(self, job: Job, completion: Completion, reason: FinishReason) -> None:
        output.finish(completion, reason)
        self._scheduler.finish(completion)
        if job.over:
            self._jobs.end(job)  # before the last word is said: its reader may count on it
        job.sink(output.text_event(completion))
