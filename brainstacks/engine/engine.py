"""The engine: routes waiting requests, runs one step of everything that runs, reports what came out.

One thread calls it. Each request has a sink that its events, or the error that ended it, are put into.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.batch import StepBatch
from brainstacks.engine.composer import Composer, Composition
from brainstacks.engine.detokenizer import Detokenizer
from brainstacks.engine.interface import Load
from brainstacks.engine.logprobs import token_logprob
from brainstacks.engine.model_runner import ModelRunner
from brainstacks.engine.records import RoutingRecords
from brainstacks.engine.request import (
    CompositionRequest,
    Event,
    FinishReason,
    GenerationRequest,
    RoutedEvent,
    Routing,
    TextEvent,
    TokenLogprob,
)
from brainstacks.engine.sampler import adjust, choose, new_generator
from brainstacks.engine.scheduler import Scheduler
from brainstacks.engine.sequence import Sequence as Running
from brainstacks.errors import (
    BrainstacksError,
    ContextTooLong,
    EngineFailure,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.residency import Residency
from brainstacks.tokenizer import ChatTokenizer

log = logging.getLogger(__name__)

Sink = Callable[[Event | Routing | BrainstacksError], None]


@dataclass(eq=False)
class _Job:
    """A request inside the engine. `sequences` is empty for a request that only asks for its route."""

    request_id: str
    prompt_ids: Sequence[int]
    composition: CompositionRequest
    sink: Sink
    request: GenerationRequest | None = None
    composed: Composition | None = None
    sequences: list[Running] = field(default_factory=list)
    announced: bool = False


class StepEngine:
    """Args:
    base: loaded with hooks not attached.
    registry: whose active stacks and router are served; None serves the base alone.
    config: limits.
    """

    def __init__(self, base: BaseModel, registry: Registry | None, config: EngineConfig) -> None:
        self.base = base
        self.registry = registry
        self.config = config
        self.tokenizer: ChatTokenizer | None = base.chat_tokenizer() if base.tokenizer is not None else None
        self.hooks = CompositionHooks(base.sites)
        self.hooks.attach()
        self.residency = Residency(registry, base)
        self.composer = Composer(self.residency, None)
        self.records = RoutingRecords(config.routing_records)
        self._router_problem: str | None = None
        self._runner = ModelRunner(base, self.hooks)
        self._scheduler = Scheduler(config)
        self._unrouted: deque[_Job] = deque()
        self._jobs: dict[str, _Job] = {}
        self.sync()

    # --- what is served ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Serve what the registry says is active; safe to call from any thread."""
        self.residency.sync()
        if self.registry is None:
            return
        history = self.registry.snapshot().router
        if history is None:
            self.composer.router, self._router_problem = None, None
            if self.residency.serving:
                self._router_problem = "there is no router: routed requests are answered by the base alone"
            return
        active = history.current
        try:
            self.composer.router = Router.load(self.registry.blob_path(active.digest), self.base)
            self._router_problem = None
        except BrainstacksError as error:
            self._router_problem = f"router version {active.version}: {error.message}"

    @property
    def problems(self) -> tuple[str, ...]:
        """Published versions that cannot be served, and why."""
        return (*self.residency.problems, *([self._router_problem] if self._router_problem else []))

    @property
    def max_context(self) -> int:
        limit = min(self.base.max_context, self.config.kv_cache_tokens)
        return min(limit, self.config.max_context or limit)

    @property
    def generation(self) -> int:
        return self.registry.generation if self.registry is not None else 0

    @property
    def load(self) -> Load:
        running = list(self._scheduler.running)
        return Load(
            running=len(running),
            waiting=len(self._unrouted) + len(self._scheduler.waiting),
            kv_tokens_used=sum(s.length for s in running),
            kv_tokens_total=self.config.kv_cache_tokens,
        )

    # --- requests ---------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    def add(self, request: GenerationRequest, sink: Sink) -> None:
        """Take in a request; its events go to `sink`, errors too.

        Raises:
            InvalidRequest, ContextTooLong, Overloaded: it was not taken in.
        """
        self.check(request.prompt_ids, request.composition, request.sampling.max_tokens)
        job = _Job(request.request_id, request.prompt_ids, request.composition, sink, request)
        self._enqueue(job)

    def add_route(
        self, request_id: str, prompt_ids: Sequence[int], composition: CompositionRequest, sink: Sink
    ) -> None:
        """Take in a request for its route alone; `sink` gets one `Routing`. Raises as `add`."""
        self.check(prompt_ids, composition, 0)
        self._enqueue(_Job(request_id, prompt_ids, composition, sink))

    def check(self, prompt_ids: Sequence[int], composition: CompositionRequest, max_tokens: int) -> None:
        """Refuse what can never run."""
        if not prompt_ids:
            raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")
        vocab = self.base.vocab_size
        bad = next((i for i in prompt_ids if not 0 <= i < vocab), None)
        if bad is not None:
            raise InvalidRequest(f"token id {bad} is out of range; ids lie in 0..{vocab - 1}", param="prompt")
        if len(prompt_ids) + max_tokens > self.max_context:
            raise ContextTooLong(
                f"the prompt has {len(prompt_ids)} tokens and max_tokens is {max_tokens}, together "
                f"{len(prompt_ids) + max_tokens}; the context is {self.max_context} tokens; shorten one",
                param="max_tokens" if len(prompt_ids) <= self.max_context else "prompt",
            )
        self.composer.check(composition)

    def abort(self, request_id: str, reason: BrainstacksError | None = None) -> None:
        """Drop a request and free what it held; does nothing when it is over already.

        Args:
            reason: told to the request's sink; None when nobody listens any more.
        """
        job = self._jobs.get(request_id)
        if job is not None:
            if reason is not None:
                job.sink(reason)
            self._end(job)

    def _enqueue(self, job: _Job) -> None:
        if job.request_id in self._jobs:
            raise InvalidRequest(
                f"request id {job.request_id!r} is in use; choose another", param="request_id"
            )
        waiting = len(self._unrouted) + len(self._scheduler.waiting)
        if waiting >= self.config.max_queue:
            raise Overloaded(
                f"{waiting} requests are waiting, and the queue holds {self.config.max_queue}; retry later"
            )
        self._jobs[job.request_id] = job
        self._unrouted.append(job)

    # --- a step -----------------------------------------------------------------------------------

    def step(self) -> None:
        """Route some waiting requests, then advance everything that runs by one step.

        Never raises: what fails ends the requests that it concerns, and only those.
        """
        concerned: set[str] = set()
        try:
            jobs = self._take_unrouted()
            concerned = {job.request_id for job in jobs}
            self._route(jobs)
            rows = self._scheduler.schedule()
            concerned = {row.sequence.request.request_id for row in rows}
            if rows:
                self._advance_all(*self._runner.run(rows, self.residency.bank))
        except Exception as error:
            self._fail(concerned, error)

    def _advance_all(self, batch: StepBatch, logits: Tensor) -> None:
        for row in batch.rows:  # all of them first: a finish below moves another sequence's slot
            row.sequence.computed = row.start + row.count
        at = 0
        for row, count in zip(batch.rows, batch.logit_counts, strict=True):
            if count and row.sequence.finish_reason is None:
                try:
                    self._advance(row.sequence, logits[at : at + count], row.start)
                except Exception as error:  # one request's own, such as logits that are not finite
                    self._fail({row.sequence.request.request_id}, error)
            at += count

    def _take_unrouted(self) -> list[_Job]:
        count = min(len(self._unrouted), self.config.max_router_batch)
        return [self._unrouted.popleft() for _ in range(count)]

    def _route(self, jobs: Sequence[_Job]) -> None:
        """Compose waiting requests; those that the router decides share one pass over their prompts."""
        routed = [job for job in jobs if self.composer.needs_router(job.composition)]
        found: dict[str, dict[str, float]] = {}
        milliseconds = 0.0
        router = self.composer.router
        if routed and router is not None:
            started = perf_counter()
            rows = router.probabilities(self.base, [job.prompt_ids for job in routed])
            found = {job.request_id: row for job, row in zip(routed, rows, strict=True)}
            milliseconds = 1000 * (perf_counter() - started)
        for job in jobs:
            probabilities = found.get(job.request_id)
            try:
                job.composed = self.composer.compose(
                    job.request_id,
                    job.composition,
                    self.generation,
                    probabilities,
                    milliseconds if probabilities is not None else 0.0,
                )
            except BrainstacksError as error:
                job.sink(error)
                self._end(job)
                continue
            self._start(job, job.composed)

    def _start(self, job: _Job, composed: Composition) -> None:
        self.records.add(composed.routing)
        request = job.request
        if request is None:
            job.sink(composed.routing)
            self._end(job)
            return
        params = request.sampling
        for index in range(request.n):
            seed = None if params.seed is None else params.seed + index
            detokenizer = Detokenizer(self.tokenizer, params.stop) if self.tokenizer is not None else None
            sequence = Running(request, index, new_generator(seed), detokenizer, composed.weights)
            job.sequences.append(sequence)
        if params.prompt_logprobs is None:
            self._announce(job, None)
        for sequence in list(job.sequences):
            if params.max_tokens == 0 and params.prompt_logprobs is None:
                self._finish(job, sequence, "length")
            else:
                self._scheduler.add(sequence)

    def _announce(self, job: _Job, logprobs: tuple[TokenLogprob | None, ...] | None) -> None:
        """Send the `RoutedEvent`, once, before any text; `logprobs` are the prompt's, where asked for."""
        if job.announced or job.composed is None or job.request is None:
            return
        job.announced = True
        job.sink(RoutedEvent(job.composed.routing, len(job.request.prompt_ids), logprobs))

    def _advance(self, sequence: Running, logits: Tensor, start: int) -> None:
        """Use a row's logits [L, V]: those of prompt positions, then the one that chooses the next token."""
        job = self._jobs[sequence.request.request_id]
        params = sequence.request.sampling
        prompt = sequence.request.prompt_ids
        if params.prompt_logprobs is not None and start < len(prompt):
            if start == 0:
                sequence.prompt_logprobs.append(None)
            targets = list(prompt[start + 1 : start + 1 + logits.shape[0]])
            for row, target in zip(logits, targets, strict=False):
                sequence.prompt_logprobs.append(
                    token_logprob(self.tokenizer, row.log_softmax(-1), target, params.prompt_logprobs)
                )
            if sequence.computed < len(prompt):
                return
            # Whichever of n completions is through with the prompt first; its slot decides, not its index.
            self._announce(job, tuple(sequence.prompt_logprobs))
        if params.max_tokens == 0:
            self._finish(job, sequence, "length")
            return
        self._choose(job, sequence, logits[-1])

    def _choose(self, job: _Job, sequence: Running, logits: Tensor) -> None:
        params = sequence.request.sampling
        ends = () if params.ignore_eos else self.base.eos_token_ids
        may_end = len(sequence.output_ids) >= params.min_tokens
        forbidden = () if may_end else (*ends, *params.stop_token_ids)
        adjusted = adjust(logits, params, sequence.request.prompt_ids, sequence.output_ids, forbidden)
        token = choose(adjusted, params, sequence.generator)
        logprobs = logits.log_softmax(-1)
        sequence.output_ids.append(token)
        sequence.cumulative_logprob += float(logprobs[token])
        if params.logprobs is not None:
            sequence.logprobs.append(token_logprob(self.tokenizer, logprobs, token, params.logprobs))
        if token in ends or token in params.stop_token_ids:
            sequence.stop_reason = token if token in params.stop_token_ids else None
            self._finish(job, sequence, "stop")
            return
        if sequence.detokenizer is not None:
            # min_tokens counts this token: text may stop from the token after it on.
            check = len(sequence.output_ids) > params.min_tokens or params.min_tokens == 0
            stop = sequence.detokenizer.push(token, check_stop=check)
            if stop is not None:
                sequence.stop_reason = stop
                self._finish(job, sequence, "stop")
                return
        if len(sequence.output_ids) >= params.max_tokens:
            self._finish(job, sequence, "length")
        else:
            self._report(job, sequence)

    def _finish(self, job: _Job, sequence: Running, reason: FinishReason) -> None:
        if sequence.detokenizer is not None and not isinstance(sequence.stop_reason, str):
            stop = sequence.detokenizer.flush(
                check_stop=len(sequence.output_ids) > sequence.request.sampling.min_tokens
            )
            if stop is not None:
                reason, sequence.stop_reason = "stop", stop
        sequence.finish_reason = reason
        self._leave(sequence)
        self._report(job, sequence)
        if all(s.finish_reason is not None for s in job.sequences):
            self._end(job)

    def _report(self, job: _Job, sequence: Running) -> None:
        done = sequence.finish_reason is not None
        text = sequence.detokenizer.take(final=done) if sequence.detokenizer is not None else ""
        fresh = slice(sequence.reported, len(sequence.output_ids))
        sequence.reported = len(sequence.output_ids)
        job.sink(
            TextEvent(
                index=sequence.index,
                text=text,
                token_ids=tuple(sequence.output_ids[fresh]),
                logprobs=tuple(sequence.logprobs[fresh]),
                finish_reason=sequence.finish_reason,
                stop_reason=sequence.stop_reason,
                completion_tokens=len(sequence.output_ids),
                cumulative_logprob=sequence.cumulative_logprob,
            )
        )

    # --- the end of a request ---------------------------------------------------------------------

    def _leave(self, sequence: Running) -> None:
        """Free a sequence's place in the batch and in the cache."""
        move = self._scheduler.finish(sequence)
        if move is not None:
            source, target = move
            computed = self._scheduler.running[target].computed
            if computed:  # otherwise it holds nothing yet, and its slot may not even be allocated
                self._runner.cache.move(source, target, computed)

    def _end(self, job: _Job) -> None:
        self._jobs.pop(job.request_id, None)
        if job in self._unrouted:
            self._unrouted.remove(job)
        for sequence in job.sequences:
            if sequence.finish_reason is None:
                sequence.finish_reason = "abort"
                self._leave(sequence)
        if job.composed is not None:
            self.residency.release(job.composed.residents)
            job.composed = None

    def _fail(self, request_ids: set[str], error: Exception) -> None:
        """End the requests of a step that raised; everything else goes on."""
        log.exception("a step failed; %d requests end with it", len(request_ids))
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            reply: BrainstacksError = Unavailable(
                "the device is out of memory; retry later, or ask for fewer tokens"
            )
        else:
            reply = EngineFailure(
                "the engine failed in a step of this request; it goes on with others; retry"
            )
        for request_id in request_ids:
            job = self._jobs.get(request_id)
            if job is not None:
                job.sink(reply)
                self._end(job)
        if not self._scheduler.running:
            self._runner.cache.clear()
