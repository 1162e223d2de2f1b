"""Replicas behind Ray Serve: versions change under load, and one replica is killed meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence, Set
from time import monotonic
from typing import Any

import httpx2 as httpx
import psutil

from tests.soak.client import ask
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.publishing import DOMAINS, Asked, Publisher, draw, problem
from tests.soak.server_process import Server
from tests.soak.world import STEADY_FLAGS, Oracle

REPLICAS = 3
CLIENTS = 6
BOUND = 10.0
"""Seconds within which all replicas serve what one of them published. They are told at once; the rest is for
a busy machine to read and try it."""
STARTS = 240.0
"""Seconds within which a replica that is lost has a successor."""
TITLE = "ServeReplica:brainstacks:replica"
"""In the title of a replica's process."""
PATIENCE = 0.1
"""Seconds between two looks at what the replicas say: they tell it by a clock of their own."""


def flags(replicas: int = REPLICAS) -> tuple[str, ...]:
    return (*STEADY_FLAGS, "--replicas", str(replicas), "--replica-cpus", "0.3", "--registry-poll", "1")


async def fleet(
    server: Server,
    count: int,
    seconds: float,
    seed: int,
    say: Say,
    *,
    replicas: int = REPLICAS,
    kills: bool = True,
) -> Outcome:
    """Publish `count` versions one after the other under the load of six clients, and, if it `kills`, kill a
    replica after a third of them; all within `seconds`, a successor's start not counted.

    Each answer is exactly that of the versions that its own `routing` names, which are such as the domains
    were at at most `BOUND` before; but for those that the killed replica was computing, which end with an
    error that says so. Everybody serves each change within `BOUND`, and so does the successor once it is
    there.
    """
    outcome, progress = Outcome(), Progress(say)
    asked: list[Asked] = []
    over = False

    async def work(client: httpx.AsyncClient, pick: random.Random) -> None:
        while not over:
            body, domains = draw(pick, server.model)
            since = monotonic()
            asked.append(Asked(body, domains, await ask(client, body), since, monotonic()))

    async def change(publisher: Publisher, admin: httpx.AsyncClient) -> list[float]:
        took = []
        for number in range(count):
            await publisher.publish(DOMAINS[number % len(DOMAINS)])
            took.append(await converged(admin))
            if kills and number == count // 3:
                kill_one(server)
            progress.at((number + 1) / count, f"of {count} versions, {len(asked)} answers")
        return took

    async with server.client() as client, server.client(admin=True) as admin:
        publisher = Publisher(admin, server.world, outcome, seed)
        for domain in DOMAINS:
            await publisher.publish(domain)
        await converged(admin)
        before = await (complete(admin, replicas) if kills else replicas_of(admin))
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(work(client, random.Random(1000 * seed + number)))
            try:
                async with asyncio.timeout(seconds):
                    took = await change(publisher, admin)
                began = monotonic()
                after = await complete(admin, replicas, lost=before if kills else frozenset())
                outcome.figures["successor_after_s"] = monotonic() - began
                outcome.figures["successor_converged_s"] = await converged(admin)
            finally:
                over = True
    outcome.require(len(before - after) == kills, f"before {before}, after {after}")
    outcome.figures["slowest_convergence_s"], outcome.figures["versions"] = max(took), count
    judge(server, asked, publisher, outcome, len(before))
    return outcome


def judge(
    server: Server, asked: Sequence[Asked], publisher: Publisher, outcome: Outcome, replicas: int
) -> None:
    """Compare every answer with the oracle's; at least so many `replicas` gave one."""
    oracle, lost, answering = Oracle(server.world), 0, set()
    for one in asked:
        answering.add(one.reply.headers.get("x-brainstacks-replica"))
        if (one.reply.error or {}).get("code") == "replica_lost":
            lost += 1
            continue
        wrong = problem(one, publisher.histories, oracle, BOUND)
        outcome.counts["answered" if one.reply.whole else f"refused {one.reply.status}"] += 1
        outcome.require(wrong is None, f"{one.domains}: {wrong}")
    outcome.counts["lost with their replica"] = lost
    outcome.require(lost <= CLIENTS, f"{lost} requests were lost; one replica had {CLIENTS} at most")
    outcome.require(len(answering - {None}) >= replicas, f"{answering} have answered")


def kill_one(server: Server) -> int:
    """SIGKILL to one of its replicas; how many there were."""
    children = psutil.Process(server.pid).children(recursive=True)
    there = [child for child in children if TITLE in " ".join(child.cmdline())]
    there[0].kill()
    return len(there)


async def states(admin: httpx.AsyncClient) -> list[dict[str, Any]]:
    """What the replicas said of themselves."""
    told: list[dict[str, Any]] = (await admin.get("/admin/stacks")).raise_for_status().json()["replicas"]
    return told


async def replicas_of(admin: httpx.AsyncClient) -> set[str]:
    return {one["replica"] for one in await states(admin)}


async def converged(admin: httpx.AsyncClient) -> float:
    """Seconds until all who are there serve the newest generation. Raises TimeoutError after `BOUND`."""
    began = monotonic()
    newest = 0
    async with asyncio.timeout(BOUND):
        while True:
            generations = [one["generation"] for one in await states(admin)]
            newest = max(newest, *generations)
            if set(generations) == {newest}:
                return monotonic() - began
            await asyncio.sleep(PATIENCE)


async def complete(admin: httpx.AsyncClient, replicas: int, lost: Set[str] = frozenset()) -> set[str]:
    """The names of the `replicas`, once all tell of themselves, not all of those that are `lost` among them.

    Raises TimeoutError after `STARTS`.
    """
    async with asyncio.timeout(STARTS):
        while len(there := await replicas_of(admin)) != replicas or (lost and lost <= there):
            await asyncio.sleep(PATIENCE)
        return there
