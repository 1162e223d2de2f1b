"""The engine: routes waiting requests, runs one step of everything that runs, reports what came out.

One thread calls it. Each request has a sink that its events, or the error that ended it, are put into.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.block_manager import BLOCK_TOKENS, BlockManager
from brainstacks.engine.budgets import divide
from brainstacks.engine.delivery import Delivery
from brainstacks.engine.facts import Gauges
from brainstacks.engine.intake import Intake, RouterPass
from brainstacks.engine.jobs import Job
from brainstacks.engine.live_jobs import LiveJobs
from brainstacks.engine.replies import Sink
from brainstacks.engine.request import GenerationRequest, Request, sequences
from brainstacks.engine.routes import RoutingRecords
from brainstacks.engine.runner.backend import Backend
from brainstacks.engine.runner.flight import Flight, Outcome
from brainstacks.engine.runner.kv_cache import affordable_tokens
from brainstacks.engine.runner.model_runner import ModelRunner
from brainstacks.engine.sampling.grammar import CompiledGrammar, Grammars
from brainstacks.engine.sampling.sampler import Sampler
from brainstacks.engine.scheduler import Row, Scheduler
from brainstacks.engine.serving.composer import Composer
from brainstacks.engine.serving.serving import Serving
from brainstacks.errors import BrainstacksError, InvalidRequest, Overloaded
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.stacks.lease import Lease
from brainstacks.stacks.registry import Registry
from brainstacks.tokenizer import ChatTokenizer


class StepEngine:
    """Args:
    base: loaded with hooks not attached.
    registry: whose active stacks and router are served; None serves the base alone.
    config: limits.

    Raises:
        ConfigError: the device has no room for what was asked for.
    """

    def __init__(self, base: BaseModel, registry: Registry | None, config: EngineConfig) -> None:
        self.base = base
        self.registry = registry
        self.tokenizer: ChatTokenizer | None = base.chat_tokenizer() if base.tokenizer is not None else None
        self.hooks = CompositionHooks(base.sites)
        self.hooks.attach()
        config = divide(base, config)
        self.serving = Serving(base, registry, config)
        kv_tokens = config.kv_cache_tokens or affordable_tokens(base)  # when the stacks are there
        self.config = config = replace(config, kv_cache_tokens=kv_tokens)
        self.stacks = self.serving.cache
        self.composer = Composer(self.serving)
        self.records = RoutingRecords(config.routing_records)
        caching = config.prefix_caching and not config.deterministic
        self._blocks = BlockManager(kv_tokens, prefix_caching=caching, reserve=config.deterministic)
        self._scheduler = Scheduler(config, self._blocks)
        self.grammars = Grammars(base.tokenizer, base.vocab_size, base.eos_token_ids)
        self._sampler = Sampler(self.tokenizer, base.eos_token_ids)
        self._runner = ModelRunner(
            base, self.hooks, config, self.tokenizer, self._scheduler, self._blocks, self._sampler
        )
        self.stacks.bank.prepare_with(self.backend.prepare)
        router_pass = RouterPass(base, config, self._blocks, self._runner)
        self._jobs = LiveJobs(self._free, self._blocks)
        self._delivery = Delivery(self._jobs, self._scheduler, base.eos_token_ids)
        end = self._jobs.end
        self._intake = Intake(base, config, self.serving, self.composer, router_pass, self.records, end)
        self._flight: Flight | None = None  # the step in the air
        self._leases: list[Lease] = []  # of jobs that have ended, to be released
        self._arrivals = count()
        self._changed = threading.Event()
        self._on_change: Callable[[], None] = self._changed.set

    # --- what is served ---------------------------------------------------------------------------

    @property
    def max_context(self) -> int:
        """Most tokens of prompt + completion."""
        return self._intake.max_context

    @property
    def backend(self) -> Backend:
        """What computes its steps."""
        return self._runner.backend

    @property
    def gauges(self) -> Gauges:
        return Gauges(
            running=len(self._scheduler.running),
            waiting=self._waiting,
            kv_tokens_used=self._blocks.pool.used * BLOCK_TOKENS,
            kv_tokens_total=self._blocks.pool.size * BLOCK_TOKENS,
            prompt_tokens=self._blocks.asked_tokens,
            prompt_tokens_reused=self._blocks.reused_tokens,
            preemptions=self._scheduler.preemptions,
        )

    # --- requests ---------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return len(self._jobs) > 0 or self._flight is not None

    @property
    def failures(self) -> int:
        """Of steps, or of parts of one."""
        return self._jobs.failures

    @property
    def can_step(self) -> bool:
        """A step would do something: not all there is waits for stacks to load or for its client to read."""
        return self._flight is not None or self._intake.can_step or self._scheduler.can_run

    def wait(self, timeout: float | None = None) -> None:
        """Block until stacks have been loaded, or could not be, or `timeout` seconds have passed."""
        self._changed.wait(timeout)
        self._changed.clear()

    def set_on_change(self, callback: Callable[[], None]) -> None:
        """Also call `callback`, on any thread, whenever `wait` would return."""

        def changed() -> None:
            self._changed.set()
            callback()

        self._on_change = changed

    def add(self, request: Request, sink: Sink, grammar: CompiledGrammar | None = None) -> None:
        """Take in a request that `check` lets pass.

        Args:
            grammar: its grammar, compiled; None has it compiled here.
            sink: called on the engine's thread: with one `RoutedEvent`, then `TextEvent`s until every
                completion has finished; of a request for a route, with one `Routing`; or, once and last, with
                the error that ended it.

        Raises:
            InvalidRequest, Overloaded: it was not taken in.
        """
        if request.key in self._jobs:
            raise InvalidRequest(
                f"request id {request.request_id!r} is in use; choose another", param="request_id"
            )
        waiting, more, room = self._waiting, sequences(request), self.config.max_queue
        if waiting and waiting + more > room:  # more than all the room come in when nobody waits
            raise Overloaded(
                f"{waiting} sequences wait and {more} are asked for; the queue holds {room}; retry later"
            )
        wanted = request.sampling.grammar if isinstance(request, GenerationRequest) else None
        if grammar is None and wanted is not None:
            grammar = self.grammars.compile(wanted)
        job = Job(request, sink, next(self._arrivals), grammar)
        self._jobs.add(job)
        self._intake.put(job)

    def check(self, request: Request) -> None:
        """Refuse what can never run; on any thread. Raises InvalidRequest, ContextTooLong."""
        self._intake.check(request)

    def abort(self, key: str, reason: BrainstacksError | None = None) -> None:
        """Drop a request and free what it held; does nothing when it is over already.

        Args:
            key: the request's.
            reason: told to the request's sink; None when nobody listens any more.
        """
        if key in self._jobs:
            self._jobs.end(self._jobs[key], reason)

    def abort_all(self, reason: BrainstacksError) -> None:
        """Drop every request."""
        for job in self._jobs:
            self._jobs.end(job, reason)

    def pause(self, key: str) -> None:
        """Give a request no further tokens until `resume`; it keeps its place in line."""
        if key in self._jobs:
            self._jobs[key].pause(True)

    def resume(self, key: str) -> None:
        """Undo `pause`."""
        if key in self._jobs:
            self._jobs[key].pause(False)

    @property
    def _waiting(self) -> int:
        return self._intake.sequences + len(self._scheduler.waiting)

    # --- a step -----------------------------------------------------------------------------------

    def step(self) -> None:
        """Take requests in, and advance everything that runs by one step.

        On an asynchronous backend that step is in the air when this returns: readers are told of the one
        before, and requests are taken in, while the device computes. Never raises: what fails ends the
        requests that it concerns, and only those.
        """
        jobs = self._intake.take()
        with self._jobs.ending(jobs):
            self._intake.route(jobs, self._on_change)
        for job in self._intake.ready():
            self._start(job)
        if self._flight is not None:
            with self._jobs.ending(self._jobs_of(self._flight.rows)):
                self._runner.foresee(self.stacks.bank)
        self._land()
        rows: list[Row] = []
        with self._jobs.ending(self._jobs):
            rows = self._scheduler.schedule()
        for together in self._scheduler.forwards(rows):
            self._land()
            alive = [row for row in together if row.completion.finish_reason is None]
            with self._jobs.ending(self._jobs_of(alive)):
                self._flight = self._runner.launch(alive, self.stacks.bank) if alive else None
        if not self.backend.asynchronous:
            self._land()
        self._delivery.tell()

    def _start(self, job: Job) -> None:
        """Queue what a request has to compute, now that its stacks are there."""
        with self._jobs.ending([job]):
            if job.composition is None or not isinstance(job.request, GenerationRequest):
                raise ValueError("only a composed request can start")
            if job.composition.lease.error is not None:
                self._jobs.end(job, job.composition.lease.error)
                return
            params = job.request.sampling
            completions = job.open(self._sampler, self.tokenizer)
            if params.prompt_logprobs is None:
                job.announce(None)
                if params.max_tokens == 0:
                    self._delivery.finish_all(job, "length")
                    return
            # With nothing to generate, only the first has something to do: the prompt's log-probabilities.
            for completion in completions if params.max_tokens > 0 else completions[:1]:
                self._scheduler.add(completion)

    def _land(self) -> None:
        """Take from the device what the step in the air gave, if one is: all that the next one depends on."""
        if self._flight is None:
            return
        self._delivery.tell()  # of a completion's last token, before it gets the next
        flight, self._flight = self._flight, None
        outcomes: list[Outcome] = []
        with self._jobs.ending(self._jobs_of(flight.rows)):
            outcomes = flight.land()
        for outcome in outcomes:
            self._delivery.accept(outcome)
        self._release()

    def _jobs_of(self, rows: Sequence[Row]) -> Iterator[Job]:
        """Those that have not ended."""
        for row in rows:
            if row.completion.finish_reason is None:
                yield self._jobs[row.completion.request.key]

    def _free(self, job: Job) -> None:
        """Give back all that a job holds; its stacks when no step in the air computes with them."""
        self._intake.drop(job)
        for completion in job.completions:
            if completion.finish_reason is None:
                completion.finish_reason = "abort"
                self._scheduler.finish(completion)
        if job.composition is not None:
            self._leases.append(job.composition.lease)
            job.composition = None
        self._release()

    def _release(self) -> None:
        while self._leases and self._flight is None:
            self.stacks.release(self._leases.pop())
