"""`POST /v1/chat/completions`, as OpenAI and vLLM have it."""

from __future__ import annotations

from collections.abc import Sequence
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
from server.tool_calls import Call
from server.tools import Tools, conversation, tools_of

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
    tools, tenant = _tools(body, ctx), request.state.tenant
    messages = tools.conversation(body.messages) if tools else conversation(ctx.tool_format, body.messages)
    told = tools.told() if tools else None
    given = await ctx.encoder.encode_chat(
        messages, tenant, param=param, tools=told, **body.template_options()
    )
    ids = ctx.truncated(given, body)
    begun = None
    if body.continue_final_message:  # what it goes on in is a response
        nothing = [*messages[:-1], {**messages[-1], "content": ""}]
        head = await ctx.encoder.encode_chat(
            nothing, tenant, param=param, tools=told, **body.template_options()
        )
        differs = (at for at, (one, other) in enumerate(zip(given, head, strict=False)) if one != other)
        same = min(len(given), len(head))
        begun = max(1, next(differs, same) - (len(given) - len(ids)))
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
    if tools:
        sampling = tools.held(sampling)
    ctx.check_sampling(body, sampling)
    return GenerationRequest(
        request_id=request.state.request_id,
        prompt_ids=tuple(ids),
        sampling=sampling,
        composition=composition,
        n=body.n or 1,
        tenant=tenant,
        priority=body.priority or 0,
        response_start=begun,
    )


def _tools(body: ChatRequest, ctx: Context) -> Tools | None:
    return tools_of(ctx.tool_format, body.tools, body.tool_choice, parallel=body.parallel_tool_calls)


class ChatAnswer(Answer):
    """Choices of messages; streamed, the role of each comes first and its finish reason last.

    What may still become a call of a function is held back until it has become one, or cannot; its tokens
    come with the next part.
    """

    def __init__(self, request: Request, ctx: Context, body: ChatRequest, planned: GenerationRequest) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(request, ctx, body, [planned], ctx.envelope(request, kind, "chatcmpl", body.model))
        self.with_logprobs = bool(body.logprobs)
        self.with_ids = bool(body.return_token_ids)
        self.planned = planned
        tools = _tools(body, ctx)
        self.readers = [tools.reader() for _ in range(self.completions)] if tools else []
        self.held: list[list[TextEvent]] = [
            [] for _ in range(self.completions)
        ]  # whose tokens no part has yet
        self.calls = [0] * self.completions

    async def choices(self) -> list[dict[str, Any]]:
        events: dict[int, list[TextEvent]] = {}
        async for _, event in self.reader.texts():
            events.setdefault(event.index, []).append(event)
        choices = []
        for index, ran in sorted(events.items()):
            content = "".join(event.text for event in ran)
            read = self.readers[index].feed(content, final=True) if self.readers else [content]
            calls = [one for one in read if isinstance(one, Call)]
            text = "".join(one for one in read if isinstance(one, str))
            message: dict[str, Any] = {"content": text or None if calls else text}
            if calls:
                message["tool_calls"] = [_call(call) for call in calls]
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", **message, "refusal": None},
                    "logprobs": self._logprobs([token for event in ran for token in event.logprobs]),
                    "finish_reason": _reason(ran[-1], len(calls)),
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
        index, final = event.index, event.finish_reason is not None
        read = self.readers[index].feed(event.text, final=final) if self.readers else [event.text]
        self.held[index].append(event)
        if not read and not final:
            return []
        ran, self.held[index] = self.held[index], []
        logprobs = self._logprobs([token for each in ran for token in each.logprobs])
        ids = self._ids([token for each in ran for token in each.token_ids])
        deltas = [self._said(index, piece) for piece in read if piece]
        if not deltas and ((logprobs and logprobs["content"]) or ids.get("token_ids")):
            deltas = [{"content": ""}]
        found = [_delta(index, delta) for delta in deltas]
        if found:
            found[0] |= {"logprobs": logprobs, **ids}
        if final:
            reason = _reason(event, self.calls[index])
            end = {"finish_reason": reason, "stop_reason": event.stop_reason}
            found.append({**_delta(index, {}), **end})
        return found

    def _said(self, index: int, piece: str | Call) -> dict[str, Any]:
        if isinstance(piece, str):
            return {"content": piece}
        self.calls[index] += 1
        return {"tool_calls": [{"index": self.calls[index] - 1, **_call(piece)}]}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return chat_logprobs(tokens) if self.with_logprobs else None

    def _ids(self, ids: Sequence[int]) -> dict[str, Any]:
        return {"token_ids": list(ids)} if self.with_ids else {}


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _reason(last: TextEvent, calls: int) -> str | None:
    """Why a choice ended; an answer that was cut short says so, whatever it called before."""
    return "tool_calls" if calls and last.finish_reason == "stop" else last.finish_reason
