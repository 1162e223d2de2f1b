"""Clients that hold connections open and hardly speak, more of them than files may be open; and a stream that
nobody reads while the server is to stop."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from time import perf_counter

from tests.soak.client import ask
from tests.soak.footprint import Footprint
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.server_process import Server, metrics
from tests.soak.slow_readers import long_stream, slow_socket

OPEN_FILES = 1024
"""What the server may open: `ulimit -n`."""
SILENCE, DRAIN = 5, 3
"""Seconds that a head or the beginning of a body may take; and that running requests have at the end."""
FLAGS = ("--header-timeout", str(SILENCE), "--body-grace", str(SILENCE), "--drain-timeout", str(DRAIN))

CONNECTIONS = 1100
AT_ONCE = 50
"""Connections that are made together: a listening socket holds so many."""
BYTE_SECONDS = 0.5
LATE = 15.0
"""Seconds that a busy machine may take beyond a limit."""

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
BEGINNINGS = (
    b"",
    HEAD + b"X: ",
    HEAD + b"X: ",
    HEAD + b"X: ",
    HEAD + b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n{",
)
"""What a connection sends at once; then it sends a byte from time to time, the first one nothing."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def slowloris(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """Hold up to `CONNECTIONS` connections with hardly a word, and meanwhile ask `count` times, all within
    `seconds`, over a server with `FLAGS` that may open `OPEN_FILES`.

    Every question is answered, the server closes every such connection in its time, and keeps nothing of it.
    Then a stream that is not read does not keep it from stopping in its time, with exit code 0.
    """
    outcome, progress = Outcome(), Progress(say)
    body = {"model": server.model, "prompt": "Anyone there", "max_tokens": 8, "temperature": 0}
    try:
        async with asyncio.timeout(seconds):
            async with server.client() as client:
                expected = (await ask(client, body)).texts
            before = Footprint.of(server)
            with _files(2 * CONNECTIONS):
                async with _held(server) as connections:
                    outcome.figures["files_of_the_server"] = server.open_files()
                    slowest = 0.0
                    for number in range(count):
                        begin = perf_counter()
                        async with server.client() as client:  # a new connection each
                            reply = await ask(client, body)
                        slowest = max(slowest, perf_counter() - begin)
                        good = reply.whole and reply.texts == expected
                        outcome.counts["answered" if good else "failed"] += 1
                        outcome.require(good, f"beside silent connections: {reply.status} {reply.error}")
                        progress.at((number + 1) / count, f"of {count} questions")
                    outcome.figures["slowest_answer_s"] = slowest
                    async with asyncio.timeout(SILENCE + LATE):
                        await asyncio.gather(*(_closed(reader) for reader, _ in connections))
            outcome.counts["closed by the server"] = len(connections)
            await before.compare(server, outcome)
            await _stop_beside_a_stalled_stream(server, seed, outcome)
    except TimeoutError:
        outcome.failures.append(f"not done in time; so far {dict(outcome.counts)}")
    return outcome


@contextmanager
def _files(most: int) -> Iterator[None]:
    """Let this process open `most` files. Raises ValueError where the machine forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def _held(server: Server) -> AsyncIterator[list[Connection]]:
    """The connections, each of which goes on saying next to nothing."""
    connections: list[Connection] = []

    async def speak() -> None:
        while True:
            for _, writer in connections[1 :: len(BEGINNINGS)]:
                if not writer.is_closing():
                    writer.write(b"y")
            await asyncio.sleep(BYTE_SECONDS)

    try:
        for first in range(0, CONNECTIONS, AT_ONCE):
            made = (asyncio.open_connection(*server.address) for _ in range(AT_ONCE))
            for number, (reader, writer) in enumerate(await asyncio.gather(*made), first):
                writer.write(BEGINNINGS[number % len(BEGINNINGS)])
                connections.append((reader, writer))
        speaking = asyncio.create_task(speak())
        try:
            yield connections
        finally:
            speaking.cancel()
    finally:
        for _, writer in connections:
            writer.transport.abort()


async def _closed(reader: asyncio.StreamReader) -> None:
    """Read until the server closes."""
    with suppress(ConnectionError):  # it closes with a word of ours unread
        await reader.read()


async def _stop_beside_a_stalled_stream(server: Server, seed: int, outcome: Outcome) -> None:
    loop = asyncio.get_running_loop()
    with slow_socket() as stalled:
        await loop.sock_connect(stalled, server.address)
        await loop.sock_sendall(stalled, long_stream(server, seed))
        await loop.sock_recv(stalled, 64)
        async with server.client() as client:
            running = (await metrics(client))["brainstacks_running"]
        outcome.require(running > 0, "the stream that is not read does not run")
        begin = perf_counter()
        await asyncio.to_thread(server.stop)
        took = outcome.figures["stop_beside_a_stalled_stream_s"] = perf_counter() - begin
    outcome.require(took <= DRAIN + LATE, f"a stream that is not read holds up the end for {took:.0f} s")
