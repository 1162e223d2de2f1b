"""A client that reads one reply completely, or leaves in its middle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx


@dataclass
class Reply:
    """What came back for one request.

    Attributes:
        texts: choice -> its text; `finished`: choice -> its finish reason.
        routing: of the response; of a stream, that of its first chunk.
        error: the error object of a refusal, or from the middle of a stream; or how the connection broke.
        done: it is whole: a body, or a stream up to `[DONE]`.
        left: the client went away before the end, as it meant to.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    routing: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    done: bool = False
    left: bool = False

    @property
    def whole(self) -> bool:
        """It is an answer, up to its end."""
        return self.status == 200 and self.done and self.error is None

    def take(self, document: Mapping[str, Any]) -> None:
        """A whole body, or one event of a stream."""
        self.error = document.get("error", self.error)
        self.usage = document.get("usage") or self.usage
        self.routing = self.routing or document.get("routing", {})
        for choice in document.get("choices", ()):
            index = choice["index"]
            part = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            self.texts[index] = self.texts.get(index, "") + (part.get("content") or "")
            if choice["finish_reason"] is not None:
                self.finished[index] = choice["finish_reason"]


async def ask(client: httpx.AsyncClient, body: Mapping[str, Any], leave_after: int | None = None) -> Reply:
    """Send a completion, or, if it has messages, a chat completion; what breaks is in the reply's `error`.

    Args:
        leave_after: go away after so many events of the stream.
    """
    reply = Reply()
    try:
        await _read(client, body, leave_after, reply)
    except (httpx.HTTPError, ValueError) as error:
        reply.error = {"message": f"broken off: {type(error).__name__} {error}"}
    return reply


async def _read(
    client: httpx.AsyncClient, body: Mapping[str, Any], leave_after: int | None, reply: Reply
) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    async with client.stream("POST", path, json=body) as response:
        reply.status, reply.headers = response.status_code, response.headers
        if not body.get("stream") or response.status_code != 200:
            reply.take(json.loads(await response.aread()))
            reply.done = True
            return
        events = 0
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                reply.done = True
            elif line:
                reply.take(json.loads(line.removeprefix("data: ")))
                events += 1
            if events == leave_after:
                reply.left = True
                return
