"""A small engine without tensors: bytes are tokens, the answer is a script.

It keeps the promises of `brainstacks.engine.interface` that the HTTP layer relies on, and records what it
was asked. It can be told to raise, and to hold at an event, which is how tests meet it in the middle.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from brainstacks.engine.facts import Gauges, ModelInfo, Readiness
from brainstacks.engine.request import (
    CompositionRequest,
    Event,
    FinishReason,
    GenerationRequest,
    RoutedEvent,
    Routing,
    StackRef,
    TextEvent,
    Timing,
    TokenLogprob,
)
from brainstacks.errors import RecordNotFound, Unavailable
from brainstacks.stacks.cache_stats import LOAD_SECONDS, CacheStats, Tier
from tests.server.byte_tokenizer import VOCAB, ByteTokenizer
from tests.server.fake_stacks import FLOOR, FakeStacks


class FakeEngine:
    """Answers every prompt with `reply`, one byte a token, completion i with i exclamation marks behind it.

    Attributes:
        refuse: raised by the first `anext` of every generation.
        fail_after: (tokens, error): raised after that many tokens.
        hold: when set, generations wait for it after their first token, and so does `drain`.
        reached, draining: set once a generation waits at `hold`; once `drain` was called.
        tiers, pinned, used: where domains are, those that are pinned, those in use.
        problem: what is wrong with its device.
        over: set when it computes no more.
        timing: what the last event of a completion says.
        requests, aborted, uploads: what it was asked, whose iterator was closed early, the bytes it got.
        opened: the file that it gave out last.
    """

    def __init__(self, domains: Sequence[str] = ("chat", "math"), reply: str = "Hello, wörld") -> None:
        self.model = ModelInfo(
            "tiny",
            256,
            VOCAB,
            "f" * 64,
            "none",
            "float32",
            "cpu",
            1_700_000_000,
            "fake",
            "it is asked for",
            "a CPU",
            None,
            None,
            4096,
        )
        self.tokenizer = ByteTokenizer()
        self.stacks: FakeStacks = FakeStacks(self)
        self.status = FakeStatus(self)
        self.generation = 7
        self.names = list(domains)
        self.versions = dict.fromkeys(domains, 1)
        self.tiers: dict[str, Tier] = dict.fromkeys(domains, "device")
        self.pinned: set[str] = set()
        self.used: set[str] = set()
        self.reply = reply
        self.ready = Readiness(True)
        self.silence = 0.0
        self.problem: str | None = None
        self.over = asyncio.Event()
        self.refuse: Exception | None = None
        self.refuse_publish: Exception | None = None
        self.fail_after: tuple[int, BaseException] | None = None
        self.hold: asyncio.Event | None = None
        self.reached = asyncio.Event()
        self.requests: list[GenerationRequest] = []
        self.aborted: list[str] = []
        self.records: list[Routing] = []
        self.uploads: dict[str, bytes] = {}
        self.upload_paths: list[Path] = []
        self.opened: BinaryIO | None = None
        self.digests: dict[str, str] = {}
        self.drained: float | None = None
        self.draining = asyncio.Event()
        self.closed = False
        self.timing: Timing | None = None

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[int, Event]]:
        """Side by side, each one event at a time."""
        streams = [cast(AsyncGenerator[Event], self.events(request)) for request in requests]
        turns = {asyncio.ensure_future(anext(one)): index for index, one in enumerate(streams)}
        try:
            while turns:
                done, _ = await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED)
                for turn in sorted(done, key=turns.__getitem__):
                    index = turns.pop(turn)
                    if isinstance(turn.exception(), StopAsyncIteration):
                        continue
                    yield index, turn.result()
                    turns[asyncio.ensure_future(anext(streams[index]))] = index
        finally:
            for turn in turns:
                turn.cancel()
            await asyncio.gather(*turns, return_exceptions=True)
            for one in streams:
                await one.aclose()

    async def events(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.requests.append(request)
        if self.drained is not None:
            raise Unavailable("The server is draining; ask another", retry_after=5)
        if self.refuse is not None:
            raise self.refuse
        finished = False
        try:
            routing = self._compose(request.request_id, request.composition, request.tenant)
            if request.recorded:
                self.records.insert(0, routing)
            yield RoutedEvent(routing, len(request.prompt_ids), self._prompt_logprobs(request))
            for index in range(request.n):
                async for event in self._completion(request, index):
                    yield event
            finished = True
        finally:
            if not finished:
                self.aborted.append(request.request_id)

    async def _completion(self, request: GenerationRequest, index: int) -> AsyncIterator[TextEvent]:
        sampling = request.sampling
        ids = list((self.reply + "!" * index).encode())
        reason: FinishReason = "stop" if len(ids) < sampling.max_tokens else "length"
        ids = ids[: sampling.max_tokens]
        pending = b""
        for count, token_id in enumerate(ids, start=1):
            if self.fail_after is not None and count > self.fail_after[0]:
                raise self.fail_after[1]
            if self.hold is not None and count == 2:
                self.reached.set()
                await self.hold.wait()
            pending += bytes([token_id])
            try:
                text, pending = pending.decode(), b""
            except UnicodeDecodeError:  # the middle of a character: it comes with its last byte
                text = ""
            last = count == len(ids)
            yield TextEvent(
                index=index,
                text=text,
                token_ids=(token_id,),
                logprobs=() if sampling.logprobs is None else (self.logprob(token_id, sampling.logprobs),),
                finish_reason=reason if last else None,
                timing=self.timing if last else None,
                completion_tokens=count,
                cumulative_logprob=-0.5 * count / (index + 1),
            )
        if not ids:
            yield TextEvent(index=index, text="", finish_reason="length")

    def logprob(self, token_id: int, top: int) -> TokenLogprob:
        others = tuple(self.logprob((token_id + i) % 128, 0) for i in range(top))
        return TokenLogprob(
            token_id,
            -0.5 - token_id / 1000,
            self.tokenizer.token_text(token_id),
            self.tokenizer.token_bytes(token_id),
            others,
            rank=7,
        )

    def _prompt_logprobs(self, request: GenerationRequest) -> tuple[TokenLogprob | None, ...] | None:
        top = request.sampling.prompt_logprobs
        if top is None:
            return None
        return (None, *(self.logprob(token_id, top) for token_id in request.prompt_ids[1:]))

    def _compose(self, request_id: str, composition: CompositionRequest, tenant: str) -> Routing:
        routed = composition.mode == "routed"
        probabilities = {name: 0.9 / (i + 1) for i, name in enumerate(self.names)} if routed else None
        weights: Mapping[str, float] = {
            "routed": {name: p if p > FLOOR else 0.0 for name, p in (probabilities or {}).items()},
            "base": {},
            "ungated": dict.fromkeys(self.names, 1.0),
            "fixed": dict(composition.weights),
        }[composition.mode]
        heaviest = sorted(weights, key=lambda name: -abs(weights[name]))[: composition.top]
        active = tuple(name for name in self.names if name in heaviest and weights[name])
        stacks = {name: StackRef(self.versions[name], f"digest-{name}") for name in active}
        return Routing(
            request_id, composition.mode, probabilities, weights, active, stacks, 1.5 if routed else 0.0,
            dict.fromkeys(weights, "router" if routed else "request"), 0.25 if routed else None,
            1_700_000_001.0, self.generation, tenant,
        )  # fmt: skip

    async def route(
        self, request_id: str, prompt_ids: Sequence[int], composition: CompositionRequest, tenant: str = ""
    ) -> Routing:
        if self.refuse is not None:
            raise self.refuse
        return self._compose(request_id, composition, tenant)

    async def drain(self, timeout: float) -> None:
        self.drained = timeout
        self.draining.set()
        if self.hold is not None:
            await self.hold.wait()

    async def ended(self) -> None:
        await self.over.wait()

    async def close(self) -> None:
        self.closed = True
        self.over.set()


class FakeStatus:
    """What it says of itself; what it knows is the engine's."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    @property
    def model(self) -> ModelInfo:
        return self._engine.model

    def routing_record(self, request_id: str, tenant: str = "") -> Routing:
        for record in self._engine.records:
            if (record.tenant, record.request_id) == (tenant, request_id):
                return record
        raise RecordNotFound(f"There is no record of {request_id!r}; it may be too old")

    def routing_records(self, *, domain: str | None = None, active: bool | None = None) -> list[Routing]:
        found = [record for record in self._engine.records if domain is None or domain in record.weights]
        return [r for r in found if active is None or (domain in r.active) == active]

    def gauges(self) -> Gauges:
        return Gauges(1, 2, 30, 400, prompt_tokens=500, prompt_tokens_reused=120, preemptions=3)

    def cache(self) -> CacheStats:
        return CacheStats(
            {"device": 200, "host": 50, "disk": 900},
            {"device": 250, "host": 100},
            {"host": 3, "disk": 4},
            {"device": 5, "host": 1},
            hits=8,
            misses=7,
            load_seconds=[1, 2, 3] + [0] * (len(LOAD_SECONDS) - 3) + [1],
            load_seconds_sum=12.5,
            waiting=6,
            tiers=dict(self._engine.tiers),
        )

    def problem(self) -> str | None:
        return self._engine.problem

    def silence(self) -> float:
        return self._engine.silence

    def readiness(self) -> Readiness:
        return Readiness(False, ("draining",)) if self._engine.drained is not None else self._engine.ready
