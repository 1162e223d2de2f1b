"""Two servers on one registry: what one changes the other serves soon, and never half of it."""

from __future__ import annotations

import asyncio
import random
from time import monotonic
from typing import Any

import httpx2 as httpx

from tests.soak.client import ask
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.publishing import DOMAINS, Asked, History, Publisher, draw, problem
from tests.soak.server_process import Server, serving
from tests.soak.world import STEADY_FLAGS, Oracle, World

POLL = 1.0
"""Seconds between two looks at the registry."""
TAKES = 5.0
"""Seconds that a busy machine may take to try and load what such a look has found."""
FLAGS = (*STEADY_FLAGS, "--registry-poll", str(POLL))
CLIENTS = 3
"""Of each server."""


def replicas(world: World, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """For `seconds`, and `count` changes at least, change what the first of two servers serves, under the
    load of three clients of each.

    Each answer is exactly that of the versions that its own `routing` names. Those are versions that the
    domains were at while the request was under way; at the second server, up to `POLL` and `TAKES` before. In
    the end both serve the same, and nothing is wrong.
    """
    with serving(world, FLAGS) as first, serving(world, FLAGS) as second:
        return asyncio.run(_replicas(first, second, count, seconds, seed, say))


async def _replicas(
    first: Server, second: Server, count: int, seconds: float, seed: int, say: Say
) -> Outcome:
    outcome, progress = Outcome(), Progress(say)
    asked: dict[Server, list[Asked]] = {first: [], second: []}
    begin = monotonic()
    over = False

    async def change(publisher: Publisher) -> None:
        nonlocal over
        changes = 0
        try:
            while changes < count or monotonic() < begin + seconds:
                await publisher.step()
                changes += 1
                share = min(changes / count, (monotonic() - begin) / seconds)
                progress.at(share, f"of the time, {changes} changes")
        finally:
            over = True

    async def work(server: Server, client: httpx.AsyncClient, pick: random.Random) -> None:
        while not over:
            body, domains = draw(pick, server.model)
            since = monotonic()
            asked[server].append(Asked(body, domains, await ask(client, body), since, monotonic()))

    async with first.client(admin=True) as admin, second.client(admin=True) as other:
        publisher = Publisher(admin, first.world, outcome, seed, purges=False)
        for domain in DOMAINS:
            await publisher.publish(domain)
        await _caught_up(admin, other)
        async with first.client() as near, second.client() as far, asyncio.TaskGroup() as group:
            group.create_task(change(publisher))
            for number in range(CLIENTS):
                group.create_task(work(first, near, random.Random(1000 * seed + number)))
                group.create_task(work(second, far, random.Random(1000 * seed + CLIENTS + number)))
        await _caught_up(admin, other)
        problems = (await other.get("/ready")).json()["problems"]
        unserved = [each for each in problems if "no router" not in each]
        outcome.require(not unserved, f"the second says {unserved}")
    oracle = Oracle(first.world)
    for server, behind in ((first, 0.0), (second, POLL + TAKES)):
        which = "first" if server is first else "second"
        for one in asked[server]:
            outcome.counts[f"{which}: {'answered' if one.reply.whole else one.reply.status}"] += 1
            wrong = problem(one, publisher.histories, oracle, behind)
            outcome.require(wrong is None, f"{which}, {one.domains}: {wrong}")
        seen = {s["digest"] for one in asked[server] for s in one.reply.routing.get("stacks", {}).values()}
        outcome.figures[f"versions_that_the_{which}_answered_by"] = len(seen)
        outcome.require(len(seen) > len(DOMAINS), f"the {which} has answered by {len(seen)} versions only")
    outcome.figures["second_was_behind_s"] = max(
        _behind(one, publisher.histories) for one in asked[second] if one.reply.whole
    )
    return outcome


async def _caught_up(admin: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    """Raises TimeoutError: the other server does not come to serve what the first one serves."""
    now = await _served(admin)
    async with asyncio.timeout(POLL + TAKES):
        while await _served(other) != now:
            await asyncio.sleep(POLL / 10)  # it looks by its own clock, and tells nobody


async def _served(client: httpx.AsyncClient) -> dict[str, str]:
    """Domain -> digest."""
    stacks: list[dict[str, Any]] = (await client.get("/admin/stacks")).json()["stacks"]
    return {stack["domain"]: stack["digest"] for stack in stacks}


def _behind(asked: Asked, histories: dict[str, History]) -> float:
    """Seconds after the change away from a version at which a request began that it answered all the same."""
    stale = 0.0
    for name in asked.domains:
        digest = asked.reply.routing["stacks"][name]["digest"]
        stale = max(stale, asked.since - max(s.until for s in histories[name].spans if s.digest == digest))
    return stale
