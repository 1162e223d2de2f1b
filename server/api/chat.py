"""`POST /v1/chat/completions`, as OpenAI and vLLM have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from brainstacks.engine.request import GenerationRequest, TextEvent, TokenLogprob
from server import replies, sse
from server.api.answer import Answer
from server.api.context import Context, Ctx
from server.composition import resolve
from server.json_body import JsonRoute
from server.logprobs import chat_logprobs, prompt_logprobs
from server.openapi import ASKED, LIMITED, ROUTED, answers
from server.schemas import ChatRequest
from server.tools import plain, tools_of

routes = APIRouter(route_class=JsonRoute, tags=["inference"])


@routes.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    response_model=None,
    responses=answers(replies.ChatCompletion, *ASKED, headers=(*ROUTED, *LIMITED), stream=replies.ChatChunk),
)
async def chat_completions(body: ChatRequest, request: Request, ctx: Ctx) -> Response:
    """Every response carries `routing`: how the answer's stacks were composed."""
    planned = await sse.until_disconnect(request.receive, plan(body, request, ctx))
    return await ChatAnswer(request, ctx, body, planned).respond()


async def plan(
    body: ChatRequest, request: Request, ctx: Context, param: str = "messages"
) -> GenerationRequest:
    """Check and tokenise; raises before anything runs. `param` is what the client calls the messages."""
    composition = resolve(ctx.engine, body.model, body.routing)
    tools, tenant = tools_of(body.tools, body.tool_choice), request.state.tenant
    messages = tools.conversation(body.messages) if tools else plain(body.messages)
    given = await ctx.encoder.encode_chat(messages, tenant, param=param, **body.template_options())
    ids = ctx.truncated(given, body)
    room = ctx.room(ids, param)
    asked = body.asked_tokens
    max_tokens = max(1, room) if asked is None else asked
    if max_tokens > room:
        raise ctx.too_long(len(ids), max_tokens, param)
    sampling = body.sampling(
        max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        bad_words=await ctx.encode_words(body.bad_words or (), tenant),
    )
    if tools and tools.grammar:
        sampling = replace(sampling, grammar=tools.grammar)
    ctx.check_sampling(body, sampling)
    return GenerationRequest(
        request_id=request.state.request_id,
        prompt_ids=tuple(ids),
        sampling=sampling,
        composition=composition,
        n=body.n or 1,
        tenant=tenant,
        priority=body.priority or 0,
    )


class ChatAnswer(Answer):
    """Choices of messages; streamed, the role of each comes first and its finish reason last.

    What may still become a call of a function is held back until it has become one, or cannot.
    """

    def __init__(self, request: Request, ctx: Context, body: ChatRequest, planned: GenerationRequest) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(request, ctx, body, [planned], ctx.envelope(request, kind, "chatcmpl", body.model))
        self.with_logprobs = bool(body.logprobs)
        self.with_ids = bool(body.return_token_ids)
        self.planned = planned
        self.tools = tools_of(body.tools, body.tool_choice)
        self.held: dict[int, list[TextEvent] | None] = {}  # of each choice; None once a part was sent

    async def choices(self) -> list[dict[str, Any]]:
        events: dict[int, list[TextEvent]] = {}
        async for _, event in self.reader.texts():
            events.setdefault(event.index, []).append(event)
        choices = []
        for index, ran in sorted(events.items()):
            content = "".join(event.text for event in ran)
            calls = self.tools.called(content) if self.tools else []
            message = {"content": None, "tool_calls": calls} if calls else {"content": content}
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", **message, "refusal": None},
                    "logprobs": self._logprobs([token for event in ran for token in event.logprobs]),
                    "finish_reason": "tool_calls" if calls else ran[-1].finish_reason,
                    "stop_reason": ran[-1].stop_reason,
                    **self._ids([token for event in ran for token in event.token_ids]),
                }
            )
        return choices

    def about_prompt(self) -> dict[str, Any]:
        about: dict[str, Any] = {}
        if self.planned.sampling.prompt_logprobs is not None:
            about["prompt_logprobs"] = prompt_logprobs(
                self.reader.routed[0].prompt_logprobs or (), self.planned.sampling.prompt_logprobs
            )
        if self.with_ids:
            about["prompt_token_ids"] = list(self.planned.prompt_ids)
        return about

    def opening(self) -> list[dict[str, Any]]:
        return [_delta(index, {"role": "assistant", "content": ""}) for index in range(self.completions)]

    def parts(self, prompt: int, event: TextEvent) -> list[dict[str, Any]]:
        whole = self.held.get(event.index, []) is not None
        ran = self._released(event)
        if not ran:
            return []
        found = []
        text = "".join(each.text for each in ran)
        calls = self.tools.called(text) if self.tools and whole and event.finish_reason else []
        logprobs = self._logprobs([token for each in ran for token in each.logprobs])
        ids = [token for each in ran for token in each.token_ids]
        if calls:
            delta = {"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]}
            found.append({**_delta(event.index, delta, logprobs), **self._ids(ids)})
        elif text or (logprobs and logprobs["content"]) or (ids and self.with_ids):
            found.append({**_delta(event.index, {"content": text}, logprobs), **self._ids(ids)})
        if event.finish_reason is not None:
            reason = "tool_calls" if calls else event.finish_reason
            end = {"finish_reason": reason, "stop_reason": event.stop_reason}
            found.append({**_delta(event.index, {}), **end})
        return found

    def _released(self, event: TextEvent) -> list[TextEvent]:
        """What can be sent of a choice now: all that there is, unless it may still become a call."""
        held = self.held.get(event.index, [])
        if self.tools is None or held is None:
            return [event]
        ran = [*held, event]
        if event.finish_reason is None and self.tools.may_call("".join(each.text for each in ran)):
            self.held[event.index] = ran
            return []
        self.held[event.index] = None
        return ran

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return chat_logprobs(tokens) if self.with_logprobs else None

    def _ids(self, ids: Sequence[int]) -> dict[str, Any]:
        return {"token_ids": list(ids)} if self.with_ids else {}


def _delta(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
