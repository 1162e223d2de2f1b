"""What chat and plain completions share: run, then reply whole or in chunks, and never leave work behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brainstacks.engine.request import GenerationRequest, TextEvent
from server import sse
from server.api.context import Context
from server.composition import routing_headers, routing_object
from server.errors import body_of
from server.reader import Reader
from server.schemas import Sampling


class Answer(ABC):
    """Turns the events of its prompts into OpenAI's objects.

    Attributes:
        envelope: the fields that the reply, and each of its chunks, starts with.
        ignored: the header that names fields of the request without effect.
    """

    def __init__(
        self,
        request: Request,
        ctx: Context,
        body: Sampling,
        requests: Sequence[GenerationRequest],
        envelope: dict[str, Any],
    ) -> None:
        self.request = request
        self.ctx = ctx
        self.reader = Reader(ctx.engine, requests, ctx.metrics, request.state.begin, request.state.key)
        self.envelope = envelope
        self.stream = bool(body.stream)
        options = body.stream_options
        self.with_usage = bool(options and options.include_usage)
        self.usage_stats = bool(options and options.continuous_usage_stats)
        self.ignored = ctx.ignored_headers(body)
        self.completions = len(requests) * requests[0].n
        most = sum(len(one.prompt_ids) + one.n * one.sampling.max_tokens for one in requests)
        self.ticket = ctx.limits.admit(request.state.key, self.completions, most)

    @abstractmethod
    async def choices(self) -> list[dict[str, Any]]:
        """All choices, whole."""

    def about_prompt(self) -> dict[str, Any]:
        """What the reply tells of its prompt beside its choices."""
        return {}

    def opening(self) -> list[dict[str, Any]]:
        """Parts of choices that come before any text."""
        return []

    @abstractmethod
    def parts(self, prompt: int, event: TextEvent) -> list[dict[str, Any]]:
        """The parts of a choice that an event of one of the prompts gives."""

    async def whole(self) -> dict[str, Any]:
        """The reply that is not streamed."""
        choices, usage = await self.choices(), self.reader.usage
        return {**self.envelope, "choices": choices, "usage": usage, **self.about_prompt(), **self.routing()}

    async def respond(self) -> Response:
        """The whole reply; its prompts are aborted when the client leaves before its end."""
        handed_over = False
        try:
            routed = await sse.until_disconnect(self.request.receive, self.reader.start())
            headers = {**routing_headers(routed[0].routing), **self.ignored, **self.ticket.headers}
            if self.stream:
                response = sse.EventStream(self.events(), self.failed, self.close, headers)
                handed_over = True
                return response
            whole = await sse.until_disconnect(self.request.receive, self.whole())
            return JSONResponse(whole, headers=headers)
        finally:
            if not handed_over:
                await self.close()

    async def close(self) -> None:
        """Abort what still runs, and give back what it held of the key's limits."""
        self.ticket.settle(self.reader.usage["total_tokens"])
        self.request.state.summary.generation = self.reader.told()
        await self.reader.close()

    async def events(self) -> AsyncIterator[bytes]:
        """What is streamed; the first and the last event carry `routing`."""
        edge, unfinished = {**self.about_prompt(), **self.routing()}, self.completions

        def chunk(choice: dict[str, Any], edge: dict[str, Any]) -> bytes:
            usage: dict[str, Any] = {}
            if self.with_usage or self.usage_stats:
                usage = {"usage": self.reader.usage if self.usage_stats else None}
            return sse.event({**self.envelope, "choices": [choice], **usage, **edge})

        for choice in self.opening():
            yield chunk(choice, edge)
            edge = {}
        async for prompt, event in self.reader.texts():
            unfinished -= event.finish_reason is not None
            parts = self.parts(prompt, event)
            for choice in parts:
                if choice is parts[-1] and not unfinished and not self.with_usage:
                    edge = {**edge, **self.routing()}
                yield chunk(choice, edge)
                edge = {}
        if self.with_usage:
            usage = self.reader.usage
            yield sse.event({**self.envelope, "choices": [], "usage": usage, **self.routing()})

    def failed(self, error: Exception) -> Iterator[bytes]:
        """`failure`, which is noted too."""
        failed = body_of(error, self.request.state.request_id)
        self.request.state.summary.error = failed["error"]["code"]
        self.ctx.metrics.errors.labels(failed["error"]["code"]).inc()
        return self.failure(failed)

    def failure(self, failed: dict[str, Any]) -> Iterator[bytes]:
        """The events that tell of an error in the middle of a stream."""
        yield sse.event(failed)

    def routing(self, prompt: int = 0) -> dict[str, Any]:
        return {"routing": routing_object(self.reader.routed[prompt].routing)}
