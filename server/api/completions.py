"""`POST /v1/completions`, as OpenAI and vLLM have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from brainstacks.engine.request import GenerationRequest, TextEvent, TokenLogprob
from brainstacks.errors import InvalidRequest
from server import replies, sse
from server.api.answer import Answer
from server.api.context import Context, Ctx
from server.composition import resolve
from server.json_body import JsonRoute
from server.logprobs import TextOffsets, completion_logprobs, cut, prompt_logprobs
from server.offences import Offence
from server.openapi import ASKED, LIMITED, ROUTED, answers
from server.schemas import MAX_SEQUENCES, CompletionRequest

DEFAULT_MAX_TOKENS = 16

routes = APIRouter(route_class=JsonRoute, tags=["inference"])


@dataclass(frozen=True)
class Plan:
    """One prompt, as text if it is to be echoed, and what the engine is asked to do with it."""

    text: str
    request: GenerationRequest


@routes.post(
    "/v1/completions",
    summary="Continue one or more prompts",
    response_model=None,
    responses=answers(
        replies.Completion, *ASKED, headers=(*ROUTED, *LIMITED), stream=replies.CompletionChunk
    ),
)
async def completions(body: CompletionRequest, request: Request, ctx: Ctx) -> Response:
    """Every response carries `routing`: the first prompt's; with several prompts each choice has its own."""
    plans = await sse.until_disconnect(request.receive, _plan(body, request, ctx))
    return await CompletionAnswer(request, ctx, body, plans).respond()


async def _plan(body: CompletionRequest, request: Request, ctx: Context) -> list[Plan]:
    """Check and tokenise; raises before anything runs."""
    composition = resolve(ctx.engine, body.model, body.routing)
    completions_each = body.best_of or body.n or 1
    prompts = _prompts(body)
    if len(prompts) * completions_each > MAX_SEQUENCES:
        raise InvalidRequest(
            f"{len(prompts)} prompts x {completions_each} completions are more than {MAX_SEQUENCES}; "
            "send several requests",
            param="n" if body.best_of is None else "best_of",
        )
    tenant = request.state.tenant
    bad_words = await ctx.encode_words(body.bad_words or (), tenant)
    plans = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            special = body.add_special_tokens is not False
            text = prompt if body.truncate_prompt_tokens is None else ctx.encoder.end_of(prompt)
            given = await ctx.encoder.encode(text, tenant, add_special_tokens=special)
        else:
            given = prompt
        ids = ctx.truncated(given, body)
        room = ctx.room(ids, "prompt")
        max_tokens = body.asked_tokens
        if max_tokens is None:
            # A default gives way to the context, down to one token; what the client asks for does not.
            max_tokens = max(1, min(DEFAULT_MAX_TOKENS, room))
        if max_tokens > room:
            raise ctx.too_long(len(ids), max_tokens, "prompt")
        sampling = body.sampling(
            max_tokens, logprobs=body.logprobs, prompt_logprobs=body.prompt_top, bad_words=bad_words
        )
        ctx.check_sampling(body, sampling, *_beyond(body, len(ids)))
        text = prompt if isinstance(prompt, str) and body.truncate_prompt_tokens is None else ""
        if body.echo and not text:
            text = await ctx.encoder.decode(ids, tenant, "prompt")
        request_id = request.state.request_id  # which holds no ":", whoever chose it
        plans.append(
            Plan(
                text,
                GenerationRequest(
                    request_id=request_id if index == 0 else f"{request_id}:{index}",
                    prompt_ids=tuple(ids),
                    sampling=sampling,
                    composition=composition,
                    n=completions_each,
                    tenant=tenant,
                    priority=body.priority or 0,
                    response_start=body.response_begins,
                ),
            )
        )
    return plans


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    if isinstance(body.prompt, str):
        return [body.prompt]
    several = [item for item in body.prompt if not isinstance(item, int)]
    return list(several) or [[item for item in body.prompt if isinstance(item, int)]]


def _beyond(body: CompletionRequest, tokens: int) -> Iterator[Offence]:
    """That the response begins behind a prompt of so many tokens, if it does."""
    start = body.response_start
    if start is not None and start > tokens:
        message = f"response_start is {start}; it is at most the prompt's tokens ({tokens})"
        yield Offence("response_start", "invalid_value", message)


class CompletionAnswer(Answer):
    """Choices of text, in the order prompts x completions."""

    def __init__(self, request: Request, ctx: Context, body: CompletionRequest, plans: list[Plan]) -> None:
        envelope = ctx.envelope(request, "text_completion", "cmpl", body.model)
        super().__init__(request, ctx, body, [plan.request for plan in plans], envelope)
        self.body = body
        self.plans = plans
        self.offsets: dict[tuple[int, int], TextOffsets] = {}
        self.begun: set[tuple[int, int]] = set()  # completions of which some part was streamed

    async def choices(self) -> list[dict[str, Any]]:
        events: dict[tuple[int, int], list[TextEvent]] = {}
        async for prompt, event in self.reader.texts():
            events.setdefault((prompt, event.index), []).append(event)
        # The log-probabilities of many prompts take a while to write down.
        return await to_thread.run_sync(self._choices, events)

    def _choices(self, events: Mapping[tuple[int, int], list[TextEvent]]) -> list[dict[str, Any]]:
        choices = []
        for prompt in range(len(self.plans)):
            for place, index in enumerate(self._kept(prompt, events)):
                choices.append(self._choice(prompt, place, index, events[prompt, index], first=True))
        return choices

    def parts(self, prompt: int, event: TextEvent) -> list[dict[str, Any]]:
        key = (prompt, event.index)
        choice = self._choice(prompt, event.index, event.index, [event], first=key not in self.begun)
        self.begun.add(key)
        told = choice["text"] or choice["logprobs"] or choice.get("token_ids") or event.finish_reason
        return [choice] if told else []

    def _kept(self, prompt: int, events: Mapping[tuple[int, int], list[TextEvent]]) -> list[int]:
        """Indices of the completions to show: all, or the likeliest of best_of."""
        ran = sorted(index for at, index in events if at == prompt)
        n = self.body.n or 1
        if len(ran) == n:
            return ran

        def mean_logprob(index: int) -> float:
            last = events[prompt, index][-1]
            return last.cumulative_logprob / max(1, last.completion_tokens)

        return sorted(ran, key=mean_logprob, reverse=True)[:n]  # OpenAI's rule: per token

    def _choice(
        self, prompt: int, place: int, index: int, events: list[TextEvent], *, first: bool
    ) -> dict[str, Any]:
        """A choice made of `events`; its `first` part brings the prompt, if that is to be echoed."""
        echo = bool(self.body.echo) and first
        last = events[-1]
        choice: dict[str, Any] = {
            "index": prompt * (self.body.n or 1) + place,
            "text": (self.plans[prompt].text if echo else "") + "".join(event.text for event in events),
            "logprobs": self._logprobs(prompt, index, events, echo),
            "finish_reason": last.finish_reason,
            "stop_reason": last.stop_reason,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = [token for event in events for token in event.token_ids]
            if first:
                choice["prompt_token_ids"] = list(self.plans[prompt].request.prompt_ids)
        if self.body.prompt_logprobs is not None:
            scored = self.reader.routed[prompt].prompt_logprobs or ()
            choice["prompt_logprobs"] = prompt_logprobs(scored, self.body.prompt_logprobs)
        if len(self.plans) > 1 and last.finish_reason is not None:
            choice.update(self.routing(prompt))
        return choice

    def _logprobs(
        self, prompt: int, index: int, events: list[TextEvent], echo: bool
    ) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        tokens: list[TokenLogprob | None] = []
        ids: list[int] = []
        if echo:
            ids.extend(self.plans[prompt].request.prompt_ids)
            tokens.extend(cut(self.reader.routed[prompt].prompt_logprobs or (), self.body.logprobs))
        for event in events:
            ids.extend(event.token_ids)
            tokens.extend(event.logprobs)
        tokenizer = self.ctx.engine.tokenizer
        offsets = self.offsets.setdefault((prompt, index), TextOffsets())
        return completion_logprobs(tokens, ids, tokenizer, offsets) if ids else None
