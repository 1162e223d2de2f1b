"""Requests from their arrival until they can run: checked, queued, routed, composed, their stacks loaded."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.block_manager import BlockManager
from brainstacks.engine.completion import Completion
from brainstacks.engine.jobs import Job, prefix_root
from brainstacks.engine.request import GenerationRequest, Request, SamplingParams, sequences
from brainstacks.engine.routes import Conversation, RoutingRecords, StickyRoutes
from brainstacks.engine.runner.model_runner import ModelRunner
from brainstacks.engine.scheduler import Row
from brainstacks.engine.serving.composer import Composer
from brainstacks.engine.serving.serving import Serving
from brainstacks.errors import BrainstacksError, ContextTooLong, EngineFailure, InvalidRequest
from brainstacks.routing.reader import Reader, Reading
from brainstacks.routing.router import not_finite


class RouterPass:
    """Computes the prompts' first tokens with the base alone and leaves their keys and values in the prefix
    cache. There a base-only request finds them; for one that is composed they only cost what they must.

    Args:
        blocks, runner: of the engine.
    """

    def __init__(
        self, base: BaseModel, config: EngineConfig, blocks: BlockManager, runner: ModelRunner
    ) -> None:
        self._base = base
        self._config = config
        self._blocks = blocks
        self._runner = runner

    def run(self, reader: Reader, requests: Sequence[Request]) -> tuple[list[Reading], float]:
        """What `reader` makes of the prompts of one or more `requests`, and the milliseconds that it took."""
        started = perf_counter()
        prompts = [request.prompt_ids for request in requests]
        if self._config.deterministic:  # each alone, so that no other decides the shape of what is computed
            found = [reader.read(self._base, [prompt])[0] for prompt in prompts]
        else:
            found = self._kept(reader, requests) or reader.read(self._base, prompts)
        return found, 1000 * (perf_counter() - started)

    def _kept(self, reader: Reader, requests: Sequence[Request]) -> list[Reading] | None:
        """With keys and values stored; None where they are not kept, or there is no room for them."""
        if not self._blocks.prefix_caching:
            return None
        completions = [_reading(request, reader.sequence_length) for request in requests]
        try:
            if not all(self._blocks.admit(completion, 0, reuse=False) for completion in completions):
                return None
            rows = [Row(completion, 0, completion.length) for completion in completions]
            features = self._runner.features(rows, *reader.mix)
            for completion in completions:
                completion.computed = completion.length
                self._blocks.remember(completion)
        finally:
            for completion in completions:
                self._blocks.release(completion)
        return reader.from_features(features)


def _reading(request: Request, length: int) -> Completion:
    """A base-only completion that generates nothing, of the first `length` tokens of a prompt."""
    reading = GenerationRequest("", request.prompt_ids[:length], SamplingParams(max_tokens=0))
    return Completion(reading, 0, None, None, prefix_root=prefix_root(request.tenant, {}))


class Intake:
    """Args:
    base, config: limits of what can be asked.
    serving: what is served.
    composer: of it.
    router_pass: reads prompts for the router.
    records: of routings.
    end: ends a request, with the error that it gets, if any.
    """

    def __init__(
        self,
        base: BaseModel,
        config: EngineConfig,
        serving: Serving,
        composer: Composer,
        router_pass: RouterPass,
        records: RoutingRecords,
        end: Callable[[Job, BrainstacksError | None], None],
    ) -> None:
        self._config = config
        self._vocab = base.vocab_size
        self._ends = base.eos_token_ids
        self._serving = serving
        self._composer = composer
        self._router_pass = router_pass
        self._records = records
        self._end = end
        self._sticky = StickyRoutes(config.routing_records)
        self._line: list[Job] = []  # in order; until it is routed, then until its stacks are on the device
        self.max_context = min(
            base.max_context,
            config.kv_cache_tokens or base.max_context,
            config.max_context or base.max_context,
        )

    @property
    def sequences(self) -> int:
        """Completions, and prompts of which a route alone is asked, that are in here."""
        return sum(sequences(job.request) for job in self._line)

    @property
    def can_step(self) -> bool:
        """Something can be routed, or has got its stacks."""
        return any(job.composition is None or _loaded(job) for job in self._line)

    def check(self, request: Request) -> None:
        """Refuse what can never run. Raises InvalidRequest, ContextTooLong."""
        tokens = len(request.prompt_ids)
        if not tokens:
            raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")
        self._check_ids(request.prompt_ids, "prompt")
        most = 0
        if isinstance(request, GenerationRequest):
            most = request.sampling.max_tokens
            self._check_ids(request.sampling.logit_bias, "logit_bias")
            self._check_ids(request.sampling.stop_token_ids, "stop_token_ids")
            self._check_choice(request.sampling)
            self._check_response(request.response_start, tokens)
        if tokens + most > self.max_context:
            raise ContextTooLong(
                f"the prompt has {tokens} tokens and max_tokens is {most}, together {tokens + most}; "
                f"the context is {self.max_context} tokens; shorten one",
                param="max_tokens" if tokens <= self.max_context else "prompt",
            )
        self._composer.check(request.composition)

    def put(self, job: Job) -> None:
        """Take a request into the line."""
        insort(self._line, job, key=lambda one: one.place)

    def drop(self, job: Job) -> None:
        """Forget a job; does nothing when it has gone on already."""
        if job in self._line:
            self._line.remove(job)

    def take(self) -> list[Job]:
        """The next to be routed, in their order: up to as many as one router pass reads."""
        reader = self._serving.reader
        taken: list[Job] = []
        names: set[Conversation] = set()
        prompts = tokens = 0
        for job in self._line:
            if job.composition is not None:
                continue
            if reader.can_read and self._reads(job, reader):
                prompts += 1
                tokens += min(len(job.request.prompt_ids), reader.sequence_length)
                full = prompts > self._config.max_router_batch or tokens > self._config.max_prefill_tokens
                name = _conversation(job)
                if (full and prompts > 1) or name in names:  # a conversation's first prompt decides for both
                    break
                if name is not None:
                    names.add(name)
            taken.append(job)
        return taken

    def route(self, jobs: Sequence[Job], on_change: Callable[[], None]) -> None:
        """Compose jobs; those that the router decides share one pass over their prompts.

        Args:
            on_change: called, on any thread, when stacks that some of them need are on the device.
        """
        reader = self._serving.reader  # another may be published while this runs
        read: dict[Job, Reading] = {}
        milliseconds = 0.0
        for job in jobs:
            job.timing.routing = perf_counter()
        unread = [job for job in jobs if reader.can_read and self._reads(job, reader)]
        if unread:
            rows, milliseconds = self._router_pass.run(reader, [job.request for job in unread])
            read = dict(zip(unread, rows, strict=True))
        for job in jobs:
            name, reading, by = _conversation(job), read.get(job), reader
            if reading is not None:
                if not all(map(math.isfinite, reading.probabilities.values())):  # JSON has no such numbers
                    problem = not_finite(reading.probabilities)
                    self._serving.reading.failed(reader, problem)
                    self._end(job, EngineFailure(f"{problem}; name a stack, or publish another router"))
                    continue
                self._sticky.remember(name, reader, reading)
            elif (known := self._sticky.recall(name, reader)) is not None:
                by, reading = known
            asked = (job.request, self._serving.generation, reading, milliseconds if job in read else 0.0)
            try:
                if isinstance(job.request, GenerationRequest):
                    job.composition = self._composer.compose(*asked, reader=by, on_change=on_change)
                    job.timing.routed = perf_counter()
                    if job.request.recorded:
                        self._records.add(job.composition.routing)
                else:
                    routing = self._composer.route(*asked, reader=by)
                    self._records.add(routing)
                    job.sink(routing)
                    self._end(job, None)
            except BrainstacksError as error:
                self._end(job, error)

    def ready(self) -> list[Job]:
        """Composed jobs whose stacks are on the device now, or could not be brought there."""
        loaded = [job for job in self._line if _loaded(job)]
        self._line = [job for job in self._line if job not in loaded]
        return loaded

    def _reads(self, job: Job, reader: Reader) -> bool:
        """Whether `reader` is to read the job's prompt."""
        routed = job.request.composition.mode == "routed"
        return routed and self._sticky.recall(_conversation(job), reader) is None

    def _check_choice(self, params: SamplingParams) -> None:
        """Something can be chosen at every step."""
        allowed = params.allowed_token_ids
        self._check_ids(allowed, "allowed_token_ids")
        barred = {word[-1] for word in params.bad_words}
        if params.min_tokens > 0:
            barred.update(params.stop_token_ids, () if params.ignore_eos else self._ends)
        if allowed and barred.issuperset(allowed):
            raise InvalidRequest(
                "bad_words and min_tokens may forbid every token of allowed_token_ids; allow one more",
                param="allowed_token_ids",
            )

    def _check_response(self, start: int | None, tokens: int) -> None:
        if start is not None and not 1 <= start <= tokens:
            raise InvalidRequest(
                f"response_start is {start}; it lies in 1..{tokens}, the prompt's tokens",
                param="response_start",
            )

    def _check_ids(self, token_ids: Iterable[int], param: str) -> None:
        bad = next((i for i in token_ids if not 0 <= i < self._vocab), None)
        if bad is not None:
            raise InvalidRequest(
                f"token id {bad} is out of range; ids lie in 0..{self._vocab - 1}", param=param
            )


def _conversation(job: Job) -> Conversation | None:
    """Whose, and its name; None for a request of none."""
    name = job.request.composition.sticky
    return None if name is None else (job.request.tenant, name)


def _loaded(job: Job) -> bool:
    """Its stacks are on the device, or could not be brought there."""
    return job.composition is not None and job.composition.lease.over
