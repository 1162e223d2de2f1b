"""Clients that read slowly or not at all, beside others that must not notice."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from time import perf_counter
from typing import Any

import httpx2 as httpx

from tests.soak.client import ask
from tests.soak.footprint import MEMORY_SLACK, Footprint
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.server_process import Server, metrics

SLOW, STOPPED, FAST = 2, 2, 4
BYTE_SECONDS = 0.05
"""What a slow reader takes over each byte."""
RECEIVE_BUFFER = 4096
SEGMENT = 536
"""Bytes of a packet to a slow reader: with large ones the kernel alone would buffer megabytes."""

TOKENS, CHOICES = 200, 4
FAST_TOKENS = 100
FACTOR = 4.0
"""How much longer a fast client may take beside slow ones: they share the batch until those pause."""
ALONE_ROUNDS = 5
FLAGS = ("--max-unread-events", "32")


async def slow_readers(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """`count` times four streams are read as fast as they come, within `seconds`, beside four that are not.

    They take little longer than alone; the answers that nobody reads are neither generated on nor kept; and
    when their clients leave, their requests end.
    """
    outcome, progress = Outcome(), Progress(say)
    try:
        async with server.client() as client, asyncio.timeout(seconds):
            await _fast(client, server.model, outcome)  # warm-up
            alone = [await _fast(client, server.model, outcome) for _ in range(ALONE_ROUNDS)]
            before = Footprint.of(server)
            async with _readers(server, seed) as readers:
                beside = []
                for number in range(count):
                    beside.append(await _fast(client, server.model, outcome))
                    progress.at((number + 1) / count, f"of {count} rounds of fast streams")
                samples = await metrics(client)
                unfinished = samples["brainstacks_running"] + samples["brainstacks_waiting"]
                unread = server.memory() - before.memory
                ended = [str(task) for task in readers if task.done()]
    except TimeoutError:
        outcome.failures.append(f"not done after {seconds:g} s")
        return outcome
    outcome.require(not ended, f"slow readers have ended: {ended}")
    outcome.require(
        unfinished >= SLOW + STOPPED,
        f"only {unfinished:g} of the {SLOW + STOPPED} unread answers wait to be read",
    )
    outcome.figures |= {"alone_s": median(alone), "beside_slow_s": median(beside)}
    outcome.require(
        median(beside) <= FACTOR * median(alone),
        f"fast streams take {median(beside):.2f} s beside slow ones, {median(alone):.2f} s alone",
    )
    outcome.figures["memory_for_unread_bytes"] = unread
    outcome.require(unread <= MEMORY_SLACK, f"unread answers take {unread} bytes")
    await before.compare(server, outcome)
    return outcome


async def _fast(client: httpx.AsyncClient, model: str, outcome: Outcome) -> float:
    """Seconds until `FAST` streams at once are read to their ends."""
    body = {
        "model": f"{model}:base",
        "prompt": "A fast reader",
        "max_tokens": FAST_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    begin = perf_counter()
    for reply in await asyncio.gather(*(ask(client, body) for _ in range(FAST))):
        outcome.counts["answered" if reply.whole else "failed"] += 1
        outcome.require(reply.whole, f"a fast stream got {reply.status}: {reply.error}")
    return perf_counter() - begin


@asynccontextmanager
async def _readers(server: Server, seed: int) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Slow and stopped readers, each of which has the first bytes of its answer; they leave at the end."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        for number in range(SLOW + STOPPED):
            sockets.append(slow_socket())
            await loop.sock_connect(sockets[-1], server.address)
            await loop.sock_sendall(sockets[-1], long_stream(server, seed + number))
            await loop.sock_recv(sockets[-1], 64)
        tasks = [asyncio.create_task(_trickle(each)) for each in sockets[:SLOW]]
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in sockets:
            each.close()


def slow_socket() -> socket.socket:
    """One that takes little at a time, so that what is not read stays with the server."""
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    return made


async def _trickle(reader: socket.socket) -> None:
    """Read for ever, one byte at a time. Raises EOFError: the answer is over."""
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(reader, 1):
        await asyncio.sleep(BYTE_SECONDS)
    raise EOFError("the server has ended a stream that was not read")


def long_stream(server: Server, seed: int) -> bytes:
    """A long stream, of which every token brings a kilobyte or two."""
    body: dict[str, Any] = {
        "model": f"{server.model}:base",
        "messages": [{"role": "user", "content": "Go on"}],
        "max_tokens": TOKENS,
        "n": CHOICES,
        "ignore_eos": True,
        "stream": True,
        "logprobs": True,
        "top_logprobs": 20,
        "seed": seed,
    }
    content = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
