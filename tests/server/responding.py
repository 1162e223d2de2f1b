"""Responses by HTTP, whole and streamed, and functions to call."""

from __future__ import annotations

from typing import Any

import httpx2

from tests.server.completing import chunks_of

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
CLOCK: dict[str, Any] = {"type": "function", "name": "clock", "description": "The time."}


async def post(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    return await client.post("/v1/responses", json={"model": "tiny", "input": "hi", **fields})


async def answered(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    reply = await post(client, **fields)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


async def streamed(client: httpx2.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, whose framing, names and numbers are checked on the way."""
    reply = await post(client, stream=True, **fields)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = reply.text.split("\n")
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    events = chunks_of("".join(f"{line}\n" for line in lines[:-1] if not line.startswith("event: ")))
    assert [event["type"] for event in events] == names
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events
