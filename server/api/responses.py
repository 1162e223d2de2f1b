"""`POST /v1/responses`, as OpenAI has it but without a memory: chat in other words, there and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from brainstacks.engine.request import GenerationRequest
from brainstacks.errors import NotFound
from server import replies, sse
from server.api.chat import ChatAnswer, plan
from server.api.context import Context, Ctx
from server.json_body import JsonRoute
from server.openapi import ASKED, LIMITED, ROUTED, answers
from server.output_items import OutputItems
from server.schemas import ChatRequest, ResponsesRequest

FAILURES = {"invalid_request_error": "invalid_prompt", "rate_limit_error": "rate_limit_exceeded"}
"""Our `type` -> the `code` of a failed response, of which OpenAI has few; every other is `server_error`."""

routes = APIRouter(route_class=JsonRoute, tags=["inference"])


@routes.post(
    "/v1/responses",
    summary="Answer items with items",
    response_model=None,
    responses=answers(replies.Response, *ASKED, headers=(*ROUTED, *LIMITED), stream=replies.ResponseEvent),
)
async def responses(body: ResponsesRequest, request: Request, ctx: Ctx) -> Response:
    """Nothing is stored: a next turn sends the earlier items again. Every response carries `routing`."""
    chat = body.chat()
    planned = await sse.until_disconnect(request.receive, plan(chat, request, ctx, "input"))
    grammar = body.grammar() or planned.sampling.grammar
    planned = replace(planned, sampling=replace(planned.sampling, grammar=grammar))
    return await ResponseAnswer(request, ctx, body, chat, planned).respond()


@routes.api_route("/v1/responses/{rest:path}", methods=["GET", "DELETE", "POST"], include_in_schema=False)
async def not_stored(rest: str) -> Response:
    raise NotFound(
        f"There is no {rest[:64]!r} among responses: they are not stored. Send POST /v1/responses with the "
        "whole conversation as 'input'"
    )


class ResponseAnswer(ChatAnswer):
    """Chat's one choice, told as output items."""

    def __init__(
        self,
        request: Request,
        ctx: Context,
        body: ResponsesRequest,
        chat: ChatRequest,
        planned: GenerationRequest,
    ) -> None:
        super().__init__(request, ctx, chat, planned)
        self.ignored = ctx.ignored_headers(body)
        self.envelope = _envelope(body, request.state.request_id)
        self.output = OutputItems(request.state.request_id)
        self.sent = 0

    async def whole(self) -> dict[str, Any]:
        (choice,) = await self.choices()
        message = choice["message"]
        calls = [{"index": at, **call} for at, call in enumerate(message.get("tool_calls") or ())]
        for _ in self.output.take({**message, "tool_calls": calls}, choice["logprobs"]):
            pass
        for _ in self.output.end(choice["finish_reason"]):
            pass
        return self._ended(choice["finish_reason"])

    async def events(self) -> AsyncIterator[bytes]:
        begun = {**self.envelope, **self.routing()}
        yield self._event({"type": "response.created", "response": begun})
        yield self._event({"type": "response.in_progress", "response": begun})
        reason = ""
        async for prompt, event in self.reader.texts():
            for choice in self.parts(prompt, event):
                for told in self.output.take(choice["delta"], choice["logprobs"]):
                    yield self._event(told)
                reason = choice["finish_reason"] or reason
        for told in self.output.end(reason):
            yield self._event(told)
        ended = self._ended(reason)
        yield self._event({"type": f"response.{ended['status']}", "response": ended})

    def failure(self, failed: dict[str, Any]) -> Iterator[bytes]:
        """`response.failed`, then `error`, for which OpenAI's clients raise. OpenAI documents the fields of
        the latter beside its type, and sends them in `error`: they are in both places."""
        error = failed["error"]
        code = FAILURES.get(error["type"], "server_error")
        self.output.break_off()
        response = self._response("failed", error={"code": code, "message": error["message"]})
        yield self._event({"type": "response.failed", "response": response})
        told = {name: error[name] for name in ("code", "message", "param")}
        yield self._event({"type": "error", **told, **failed})

    def _ended(self, reason: str) -> dict[str, Any]:
        if reason == "length":
            return self._response("incomplete", incomplete_details={"reason": "max_output_tokens"})
        return self._response("completed", completed_at=int(time.time()))

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        counted = {"output": self.output.items, "usage": _usage(self.reader.usage)}
        return {**self.envelope, "status": status, **counted, **fields, **self.routing()}

    def _event(self, event: Mapping[str, Any]) -> bytes:
        numbered = {**event, "sequence_number": self.sent}
        self.sent += 1
        return sse.event(numbered, event["type"])


def _envelope(body: ResponsesRequest, request_id: str) -> dict[str, Any]:
    """A response that has just begun: what was asked for, as OpenAI repeats it."""
    asked = body.model_dump(include={"text", "tools", "tool_choice"}, by_alias=True, exclude_unset=True)
    held = asked.get("text", {}).get("format", {"type": "text"})
    return {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": held, "verbosity": "medium"},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _usage(counts: Mapping[str, int]) -> dict[str, Any]:
    """Chat's counts by their names here. Nobody is told what was reused: it may be another's (0)."""
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }
