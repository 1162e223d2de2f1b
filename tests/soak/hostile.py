"""Malformed bodies, headers, paths and files over raw sockets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

from tests.soak.attacks import BODY_BYTES, UPLOAD_BYTES, Attack, draws
from tests.soak.canary import Canary
from tests.soak.footprint import Footprint
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.server_process import Server

FLAGS = ("--max-body-bytes", str(BODY_BYTES), "--max-upload-bytes", str(UPLOAD_BYTES))

AT_ONCE = 8
ANSWER_SECONDS = 30.0
CANARY_EVERY = 25
BETRAYING = re.compile(rb"Traceback|site-packages|\.py\b|/tmp/|0x[0-9a-f]{8}")
"""What no reply may show of the server's inside."""


async def hostile(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """Send `count` attacks within `seconds`, over a server with `FLAGS`.

    None is answered by a 5xx, every refusal is an error object that shows nothing of the server's inside,
    and the server goes on as if nothing had been: the same answer to the same question, the memory and the
    open files of the start.
    """
    outcome, warm_up, progress = Outcome(), Outcome(), Progress(say)
    try:
        async with asyncio.timeout(seconds), server.client() as client:
            canary = Canary(client, server.model)
            answers = await canary.answers()
            await _attack(server, draws(server, CANARY_EVERY, seed + 1), warm_up)
            before = Footprint.of(server)
            attacks = list(draws(server, count, seed))
            for sent in range(0, count, CANARY_EVERY):
                await _attack(server, iter(attacks[sent : sent + CANARY_EVERY]), outcome)
                outcome.require(
                    await canary.answers() == answers, f"the canary has changed after {sent} attacks"
                )
                progress.at(min(1.0, (sent + CANARY_EVERY) / count), f"of {count} attacks")
    except TimeoutError:
        outcome.failures.append(f"not done after {seconds:g} s")
        return outcome
    await before.compare(server, outcome)
    outcome.failures += warm_up.failures
    return outcome


async def _attack(server: Server, attacks: Iterator[Attack], outcome: Outcome) -> None:
    """Several at once."""

    async def work() -> None:
        for attack in attacks:
            status, problem = await strike(server, attack)
            outcome.counts[f"{attack.kind}: {status or 'closed'}"] += 1
            outcome.require(problem is None, f"{attack.kind}: {problem}")

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def strike(server: Server, attack: Attack) -> tuple[int, str | None]:
    """Send it: the status, 0 for a bare close, and what is wrong with the answer."""
    try:
        answer = await asyncio.wait_for(_exchange(server.address, attack), ANSWER_SECONDS)
    except TimeoutError:
        return 0, f"no end within {ANSWER_SECONDS:g} s: {attack.data[:300]!r}"
    status, problem = _judge(attack, answer)
    return status, problem and f"{problem}: {attack.data[:300]!r} got {answer[:500]!r}"


async def _exchange(address: tuple[str, int], attack: Attack) -> bytes:
    """All that comes back until the server closes; what is no whole request gets the client's own end."""
    reader, writer = await asyncio.open_connection(*address)
    answer = bytearray()
    try:
        writer.write(attack.data)
        await writer.drain()
        if not attack.http:
            writer.write_eof()
        while part := await reader.read(65536):
            answer += part
    except ConnectionError:
        pass  # a server that refuses a long body before its end may close in the middle of it
    finally:
        writer.transport.abort()
    return bytes(answer)


def _judge(attack: Attack, answer: bytes) -> tuple[int, str | None]:
    """The status, 0 for a bare close, and what is wrong with it."""
    found = re.match(rb"(?:HTTP/1\.1 100 .*\r\n\r\n)?HTTP/1\.1 (\d{3}) ", answer)
    if found is None:
        return 0, "no answer" if attack.http or answer else None
    status = int(found[1])
    body = answer[found.end() :].partition(b"\r\n\r\n")[2]
    if status >= 500:
        return status, "a server error"
    if BETRAYING.search(body) and status >= 400:
        return status, "the server's inside shows"
    if status >= 400 and attack.http and not attack.data.startswith(b"HEAD "):
        return status, _malformed(body)
    return status, None


def _malformed(body: bytes) -> str | None:
    """What keeps `body` from being the error object."""
    try:
        error = json.loads(body)["error"]
        good = set(error) == {"message", "type", "param", "code"} and bool(error["message"])
    except (ValueError, KeyError, TypeError):
        good = False
    return None if good else "not an error object"
