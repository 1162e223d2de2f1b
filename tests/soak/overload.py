"""Far more requests than there is room for, of every kind, from clients of which many leave early."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from tests.soak.client import Reply, ask
from tests.soak.footprint import Footprint, leftovers
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.server_process import Server
from tests.soak.world import Oracle, World

FLAGS = ("--max-queue", "32", "--max-batch-size", "8", "--kv-cache-tokens", "512", "--routing-records", "64")
"""KV memory for about three requests, so that running ones have to make room for one another."""

DOMAINS = ("chat", "code", "math")
ENDS = ("answered", "overloaded", "refused", "left")
CLIENTS = 96
WARM_UP = 128
COMPARED = 200
"""Greedy answers that are computed again, alone."""

WRONG: tuple[tuple[dict[str, Any], int], ...] = (
    ({"model": "nobody"}, 404),
    ({"max_tokens": -1}, 400),
    ({"max_tokens": 10**9}, 400),
    ({"n": 0}, 400),
    ({"temperature": -1}, 400),
    ({"unheard_of": True}, 400),
    ({"routing": {"mode": "fixed", "weights": {"nobody": 1.0}}}, 400),
)
"""Fields that make a good request a bad one, and the status of its refusal."""


@dataclass(frozen=True)
class Asked:
    """A request, and what is to come of it.

    Attributes:
        status: what answers it when there is room.
        leave_after: events of the stream after which the client leaves.
        patience: seconds after which it leaves, however far the answer is.
    """

    body: dict[str, Any]
    status: int = 200
    leave_after: int | None = None
    patience: float | None = None


def publish(world: World) -> None:
    """Three domains, and a router over them."""
    for seed, domain in enumerate(DOMAINS):
        world.publish(domain, seed)
    world.publish_router()


def draw(pick: random.Random, model: str) -> Asked:
    """One request of the mix."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": pick.randint(1, 32),
        "temperature": pick.choice((0, 0, 1.0)),
        "n": pick.choice((1, 1, 1, 2, 3)),
        "ignore_eos": pick.random() < 0.5,
    }
    text = "".join(pick.choices("abcdefgh .,?", k=pick.randint(1, 120)))
    if pick.random() < 0.5:
        body["prompt"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
    kind = pick.randrange(5)
    if kind < 3:
        body["model"] += ("", ":base", ":ungated")[kind]
    elif kind == 3:
        chosen = pick.sample(DOMAINS, k=pick.randint(1, 3))
        body["routing"] = {"mode": "fixed", "weights": {name: pick.uniform(0.3, 1.0) for name in chosen}}
    else:
        body["model"] += f":{pick.choice(DOMAINS)}"
    if body["temperature"]:
        body["seed"] = pick.randrange(1000)
        body["presence_penalty"] = pick.choice((0, 0.5))
    if pick.random() < 0.1:
        wrong, status = pick.choice(WRONG)
        return Asked({**body, **wrong}, status)
    if pick.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if pick.random() < 0.3:
            return Asked(body, leave_after=pick.randint(1, 5))
    if pick.random() < 0.15:
        return Asked(body, patience=pick.choice((0.0, 0.02, 0.2, 1.0)))
    return Asked(body)


async def overload(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """Send `count` requests from many clients at once, within `seconds`, over a server with `FLAGS`.

    Each has to end in a whole answer, a 429 that says when to come back, the refusal that it deserves, or its
    own departure. Each prompt was read as it is, and greedy answers are those that the same composition gives
    alone. Afterwards the server holds nothing, and its memory and open files are back where they were after a
    warm-up.
    """
    outcome, warm_up = Outcome(), Outcome()
    await _send(server, WARM_UP, random.Random(seed + 1), Progress(say), warm_up, seconds)
    outcome.failures += [*warm_up.failures, *await leftovers(server)]
    before = Footprint.of(server)
    answers = await _send(server, count, random.Random(seed), Progress(say), outcome, seconds)
    await before.compare(server, outcome)
    outcome.require(outcome.counts.total() == count, f"{outcome.counts} are not {count} requests")
    for end in ENDS:
        outcome.require(outcome.counts[end] > 0, f"no request was {end}: this was no overload")
    oracle = Oracle(server.world)
    for asked, reply in answers:
        prompt = reply.usage["prompt_tokens"]
        outcome.require(prompt == len(oracle.encode(asked.body)), f"{asked.body} was read as {prompt} tokens")
    greedy = [(asked, reply) for asked, reply in answers if not asked.body["temperature"]][:COMPARED]
    for asked, reply in greedy:
        expected = oracle.text(reply.routing, asked.body)
        outcome.require(set(reply.texts.values()) == {expected}, f"{asked.body} got {reply.texts}")
    outcome.figures["compared_answers"] = len(greedy)
    return outcome


async def _send(
    server: Server, count: int, pick: random.Random, progress: Progress, outcome: Outcome, seconds: float
) -> list[tuple[Asked, Reply]]:
    """Keep `CLIENTS` busy until `count` requests have ended; the whole answers.

    Whoever is sent away waits until somebody else is done, so that not all requests are spent on refusals.
    """
    requests = iter([draw(pick, server.model) for _ in range(count)])
    ended = asyncio.Semaphore(0)
    answers: list[tuple[Asked, Reply]] = []

    async def work(client: httpx.AsyncClient) -> None:
        for asked in requests:
            try:
                end, reply = await _end(client, asked)
            except Wrong as wrong:
                end, reply = "wrong", Reply()
                outcome.failures.append(f"{asked.body}: {wrong}")
            outcome.counts[end] += 1
            progress.at(outcome.counts.total() / count, f"of {count} requests")
            if end == "answered":
                answers.append((asked, reply))
            if end == "overloaded":
                await ended.acquire()
            else:
                ended.release()
        ended.release()  # whoever still waits finds nothing left to send, and wakes the next

    try:
        async with server.client() as client, asyncio.timeout(seconds):
            await asyncio.gather(*(work(client) for _ in range(CLIENTS)))
    except TimeoutError:
        outcome.failures.append(f"not all requests had ended after {seconds:g} s")
    return answers


class Wrong(Exception):
    """A request has ended as none may."""


async def _end(client: httpx.AsyncClient, asked: Asked) -> tuple[str, Reply]:
    """Which of `ENDS` a request came to. Raises Wrong: none of them."""
    try:
        reply = await asyncio.wait_for(ask(client, asked.body, asked.leave_after), asked.patience)
    except TimeoutError:
        return "left", Reply()
    if reply.left:
        return "left", reply
    if reply.status == 429 and asked.status == 200 and reply.error is not None:
        if not reply.headers.get("retry-after", "").isdigit():
            raise Wrong("a 429 without Retry-After")
        return "overloaded", reply
    if reply.status != asked.status or (reply.error is None) != (reply.status == 200):
        raise Wrong(f"status {reply.status}, not {asked.status}: {reply.error}")
    if asked.status != 200:
        return "refused", reply
    _check_whole(asked.body, reply)
    return "answered", reply


def _check_whole(body: dict[str, Any], reply: Reply) -> None:
    """Raises Wrong: something of the answer is missing."""
    if not reply.done or set(reply.finished) != set(range(body["n"])):
        raise Wrong(f"choices {sorted(reply.finished)} have ended, of {body['n']}")
    most = body["n"] * body["max_tokens"]
    tokens = reply.usage["completion_tokens"]
    if tokens > most or (body["ignore_eos"] and tokens < most):
        raise Wrong(f"{tokens} tokens, asked for {most}")
    if set(reply.routing["active"]) != set(reply.routing["stacks"]):
        raise Wrong(f"active and stacks differ: {reply.routing}")
