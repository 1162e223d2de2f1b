"""A streaming client that notes when each piece of text arrives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import httpx2 as httpx


@dataclass
class Stream:
    """One streamed completion, as its client saw it.

    Attributes:
        started: when the request was sent (`perf_counter` seconds, as `times`).
        times: when each piece with text arrived; a piece is a token, but for those that make no whole
            character.
        tokens: completion tokens by the server's count; 0 until the end.
        error: what went wrong, if anything did.
    """

    started: float
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str | None = None

    @property
    def first_s(self) -> float:
        """Seconds to the first piece of text."""
        return self.times[0] - self.started

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """(from, to) of each wait between two pieces."""
        return list(pairwise(self.times))


def completion(model: str, prompt: str, tokens: int, weights: Mapping[str, float] | None) -> dict[str, Any]:
    """Body of a streamed, greedy completion of exactly `tokens` tokens.

    Args:
        weights: of a fixed composition; None is the base alone.
    """
    routing: dict[str, Any] = {"mode": "fixed", "weights": dict(weights)} if weights else {"mode": "base"}
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "routing": routing,
    }


async def stream(
    client: httpx.AsyncClient,
    body: Mapping[str, Any],
    on_piece: Callable[[Stream], None] = lambda _: None,
) -> Stream:
    """Send a completion request and read its stream to the end; never raises for what the server does."""
    result = Stream(perf_counter())
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                result.error = f"status {response.status_code}: {response.text[:200]}"
                return result
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _take(json.loads(line.removeprefix("data: ")), result, on_piece)
    except httpx.HTTPError as error:
        result.error = f"{type(error).__name__}: {error}"
    if result.error is None and not result.times:
        result.error = "the stream ended without text"
    return result


def _take(data: Mapping[str, Any], result: Stream, on_piece: Callable[[Stream], None]) -> None:
    if "error" in data:
        result.error = str(data["error"]["message"])
    if data.get("usage"):
        result.tokens = int(data["usage"]["completion_tokens"])
    if any(choice.get("text") for choice in data.get("choices", ())):
        result.times.append(perf_counter())
        on_piece(result)
