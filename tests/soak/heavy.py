"""Requests that are made to be hard work, while others ask for `/health` and for tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from statistics import median, quantiles
from time import perf_counter

import httpx2 as httpx

from tests.soak.footprint import Footprint
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.server_process import Server

EVERY = 0.02
"""Seconds between two questions of those who ask meanwhile."""
HEALTH_SECONDS, TOKENS_SECONDS = 0.1, 1.0
"""Within which 99 of 100 of them are answered: for `/health`, and for the tokens of a short text."""

MEGABYTES = 7 << 20
"""Just below what a body may have by default."""


def heavy_bodies(model: str) -> Iterator[tuple[str, str, bytes]]:
    """(what it is, path, body)."""
    name = json.dumps(model).encode()
    chat, tokenize = "/v1/chat/completions", "/tokenize"
    yield "a text that is never closed", chat, b'{"a":' + b"[" * 40 + b'"' + b'\\"' * 8000
    yield "escapes without end", chat, b'{"a":"' + b'\\"' * (MEGABYTES // 2)
    yield "brackets in a text", chat, b'{"model":' + name + b',"user":"' + b"[" * MEGABYTES + b'"}'
    yield "lists in lists", chat, b'{"a":' + b"[" * 100_000
    yield "many keys", chat, json.dumps({f"k{i}": i for i in range(300_000)}).encode()
    yield "a number of many digits", chat, b'{"n":' + b"9" * MEGABYTES + b"}"
    yield "one letter", tokenize, b'{"prompt":"' + b"a" * MEGABYTES + b'"}'
    strings = b'{"return_token_strs":true,"prompt":"' + b"a " * (MEGABYTES // 2) + b'"}'
    yield "token strings", tokenize, strings
    ids = b'{"model":' + name + b',"prompt":[' + b"1," * (MEGABYTES // 2) + b"1]}"
    yield "token ids", "/v1/completions", ids
    stops = json.dumps({"model": model, "prompt": "x", "stop": ["ab"] * 100_000}).encode()
    yield "stop strings", "/v1/completions", stops
    regex = {"regex": "(a|aa)+" * 2000 + "b"}
    held = {"model": model, "prompt": "x", "max_tokens": 4, "structured_outputs": regex}
    yield "a regex", "/v1/completions", json.dumps(held).encode()
    messages = [{"role": "user", "content": "hi"}] * 100_000
    yield "messages", chat, json.dumps({"model": model, "messages": messages}).encode()


async def heavy(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """Every one of `heavy_bodies`, `count` times, within `seconds`.

    Each is answered and none with a 5xx; nobody who asks meanwhile waits for it; memory and files come back.
    """
    outcome, progress = Outcome(), Progress(say)
    bodies = list(heavy_bodies(server.model))
    health, tokens = list[float](), list[float]()
    async with server.client() as client, server.client() as other:

        async def asked_for_tokens() -> httpx.Response:
            return await other.post("/tokenize", json={"prompt": "hi"})

        before: Footprint | None = None
        watching = [
            asyncio.create_task(_watch(lambda: other.get("/health"), health)),
            asyncio.create_task(_watch(asked_for_tokens, tokens)),
        ]
        try:
            async with asyncio.timeout(seconds):
                for number in range(count + 1):  # the first time only fills what stays full
                    if number == 1:
                        before = Footprint.of(server)
                        health.clear()
                        tokens.clear()
                    for what, path, body in bodies:
                        headers = {"content-type": "application/json"}
                        reply = await client.post(path, content=body, headers=headers)
                        outcome.counts[f"{what}: {reply.status_code}"] += 1
                        outcome.require(reply.status_code < 500, f"{what}: {reply.text[:200]}")
                    progress.at((number + 1) / (count + 1), f"{number} of {count} rounds")
        except TimeoutError:
            outcome.failures.append(f"not done after {seconds:g} s")
        finally:
            for task in watching:
                task.cancel()
            ended = await asyncio.gather(*watching, return_exceptions=True)
    failed = [end for end in ended if not isinstance(end, asyncio.CancelledError)]
    outcome.require(not failed, f"asking meanwhile failed: {failed}")
    for what, times, most in (("health", health, HEALTH_SECONDS), ("tokens", tokens, TOKENS_SECONDS)):
        slow = quantiles(times, n=100)[98]
        outcome.figures |= {
            f"{what}_median_s": median(times),
            f"{what}_p99_s": slow,
            f"{what}_max_s": max(times),
        }
        outcome.require(slow <= most, f"{what}: 1 of 100 waits {slow:.3f} s, more than {most} s")
    if before is not None:
        await before.compare(server, outcome)
    return outcome


async def _watch(ask: Callable[[], Awaitable[httpx.Response]], times: list[float]) -> None:
    while True:
        begin = perf_counter()
        (await ask()).raise_for_status()
        times.append(perf_counter() - begin)
        await asyncio.sleep(EVERY)
