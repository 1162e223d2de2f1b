"""Streams over HTTP, in a process of their own that costs as little as one can.

It shares the cores with the server, so it looks for a reply's begin and end and for an error, and decodes
nothing. Each stream keeps its connection and asks again as soon as it has been answered.

    python -m benchmarks.http_share.client < plan.json

The first line of its input is a `Plan`; it ends with its input, or with an error in its last line of output.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

OK = b"HTTP/1.1 200 "
ERROR = b'data: {"error":'
LAST_CHUNK = b"\r\n0\r\n\r\n"
MOST_PLAN = 64 << 20
"""Bytes of a plan's line."""


@dataclass(frozen=True)
class Plan:
    """What is asked, and where.

    Attributes:
        firsts: body of each stream's first request.
        following: bodies of all that come then, in turn, again and again.
    """

    host: str
    port: int
    firsts: Sequence[dict[str, Any]]
    following: Sequence[dict[str, Any]]

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class Stream(asyncio.Protocol):
    """One connection: a request after the other.

    Args:
        requests: as they go over the wire.
        failed: gets what went wrong, if anything does.
    """

    def __init__(self, requests: Iterator[bytes], failed: asyncio.Future[str]) -> None:
        self._requests = requests
        self._failed = failed
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"{type(transport).__name__} is no connection")
        self._transport = transport
        transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        begins = not self._tail
        seen = self._tail + data
        if (begins and not data.startswith(OK)) or ERROR in seen:
            self._fail(seen.decode(errors="replace")[-500:])
        elif seen.endswith(LAST_CHUNK):
            self._tail = b""
            self._transport.write(next(self._requests))
        else:
            self._tail = seen[-len(ERROR) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc}")

    def _fail(self, why: str) -> None:
        if not self._failed.done():
            self._failed.set_result(why)


def post(host: str, body: dict[str, Any]) -> bytes:
    """A request to `/v1/chat/completions`."""
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def run(plan: Plan, until: asyncio.Future[Any]) -> str | None:
    """Stream until `until` is done; what went wrong, if anything did."""
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[str] = loop.create_future()
    then = itertools.cycle([post(plan.host, body) for body in plan.following])
    open_streams: list[asyncio.Transport] = []
    try:
        for body in plan.firsts:
            stream = partial(Stream, itertools.chain([post(plan.host, body)], then), failed)
            open_streams.append((await loop.create_connection(stream, plan.host, plan.port))[0])
        await asyncio.wait((failed, until), return_when=asyncio.FIRST_COMPLETED)
        return failed.result() if failed.done() else None
    except OSError as error:
        return f"no connection: {error}"
    finally:
        for transport in open_streams:
            transport.abort()


async def main() -> None:
    """Ends with 1 after an error."""
    given = asyncio.StreamReader(limit=MOST_PLAN)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(given), sys.stdin)
    plan = Plan(**json.loads(await given.readline()))
    end = asyncio.ensure_future(given.read())
    error = await run(plan, end)
    if error is not None:
        print(error, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    asyncio.run(main())
