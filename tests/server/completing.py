"""Completions by HTTP, whole and streamed, and what the fake engine answers."""

from __future__ import annotations

import json
from typing import Any

import httpx2

REPLY = "Hello, wörld"  # 13 bytes, so 13 tokens


async def complete(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    reply = await client.post("/v1/completions", json={"model": "tiny", "prompt": "hi", **fields})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def chunks_of(text: str) -> list[dict[str, Any]]:
    """The objects of a stream, whose framing is checked on the way."""
    assert text.endswith("data: [DONE]\n\n")
    parts = text.split("\n\n")[:-2]
    assert all(part.startswith("data: {") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


async def stream(client: httpx2.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "tiny", "prompt": "hi", "stream": True, **fields}
    reply = await client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return chunks_of(reply.text)
