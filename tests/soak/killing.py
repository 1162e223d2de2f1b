"""Power cuts: the server is killed while it publishes, again and again."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from typing import Any

import httpx2 as httpx

from brainstacks.stacks.registry import Registry
from tests.soak.client import Reply, ask
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.server_process import ROOT, Server
from tests.soak.world import Oracle, World

DOMAINS = ("chat", "code")
"""Each has a publisher of its own, so that the kill always finds a publication under way."""

LONGEST = 0.5
"""Seconds from the first acknowledged publications to the kill, at most."""
VERIFY_SECONDS = 120


class Publisher:
    """Publishes one version of a domain after the other.

    Attributes:
        acknowledged: digest of the last publication that was answered; None before the first.
        under_way: digest of the one that was not answered yet.
    """

    def __init__(self, world: World, domain: str, seed: int) -> None:
        self.domain = domain
        self.acknowledged: str | None = None
        self.under_way: str | None = None
        self.publications = 0
        self._world = world
        self._seed = seed

    async def run(self, client: httpx.AsyncClient, first: asyncio.Event) -> None:
        """Publish until the server is gone; `first` is set after the first answer, or without one.

        Raises:
            httpx.TransportError: it is gone.
            httpx.HTTPStatusError: it refused.
        """
        try:
            while True:
                self._seed += 1
                file = self._world.file(self.domain, self._seed)
                self.under_way = file.digest
                answer = await client.put(f"/admin/stacks/{self.domain}", content=file.path.read_bytes())
                answer.raise_for_status()
                self.acknowledged, self.under_way = file.digest, None
                self.publications += 1
                first.set()
        finally:
            first.set()

    def settle(self, outcome: Outcome) -> None:
        """The server is gone: the registry on disk has the last acknowledged version, or the one after it."""
        history = Registry(self._world.registry_path).snapshot().domains.get(self.domain)
        found = history.current.digest if history is not None else None
        outcome.require(found in (self.acknowledged, self.under_way), f"{self.domain} is at {found}")
        whose = "unanswered" if found == self.under_way else "last answered"
        outcome.counts[f"left at the {whose} publication"] += 1
        known = {version.digest for version in history.versions} if history is not None else set()
        outcome.require(self.acknowledged in known, f"{self.domain} has lost {self.acknowledged}")
        self.acknowledged, self.under_way = found, None


async def killing(world: World, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """Kill the server `count` times in the middle of publications, and start it again, within `seconds`.

    Each time `brainstacks verify` finds the registry sound, each domain is at the last version that was
    answered or at the one that was under way, and the next server answers with that very version.
    """
    outcome, progress = Outcome(), Progress(say)
    pick = random.Random(seed)
    publishers = [Publisher(world, domain, 10**6 * (1 + n)) for n, domain in enumerate(DOMAINS)]
    answers: list[tuple[dict[str, Any], Reply]] = []
    try:
        async with asyncio.timeout(seconds):
            for number in range(count + 1):
                server = Server(world)
                try:
                    await _check(server, publishers, outcome, answers)
                    if number == count:
                        break
                    await _kill(server, publishers, pick.uniform(0, LONGEST), outcome)
                finally:
                    server.kill()
                for publisher in publishers:
                    publisher.settle(outcome)
                outcome.failures += await asyncio.to_thread(_verify, world)
                progress.at((number + 1) / (count + 1), f"of {count} kills")
    except TimeoutError:
        outcome.failures.append(f"{outcome.counts['kills']} of {count} kills in {seconds:g} s")
    outcome.counts["publications"] = sum(publisher.publications for publisher in publishers)
    outcome.require(outcome.counts["kills"] == count, f"{outcome.counts['kills']} of {count} kills")
    oracle = Oracle(world)
    for body, reply in answers:
        good = reply.whole and reply.texts == {0: oracle.text(reply.routing, body)}
        outcome.require(good, f"after a kill {body['model']} answers {reply.error or reply.texts}")
        outcome.counts["answers"] += 1
    return outcome


async def _kill(server: Server, publishers: list[Publisher], delay: float, outcome: Outcome) -> None:
    """Kill `server` some time after each publisher has published at least once."""
    async with server.client(admin=True) as client:
        first = [asyncio.Event() for _ in publishers]
        tasks = [
            asyncio.create_task(publisher.run(client, event))
            for publisher, event in zip(publishers, first, strict=True)
        ]
        for event in first:
            await event.wait()
        await asyncio.wait(tasks, timeout=delay)
        server.kill()
        outcome.counts["kills"] += 1
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            outcome.require(isinstance(ended, httpx.TransportError), f"a publication ended in {ended!r}")


async def _check(
    server: Server,
    publishers: list[Publisher],
    outcome: Outcome,
    answers: list[tuple[dict[str, Any], Reply]],
) -> None:
    """A server that has just started serves what was left to it, all of it."""
    async with server.client(admin=True) as client:
        ready = (await client.get("/ready")).json()
        unserved = [problem for problem in ready["problems"] if "no router" not in problem]
        outcome.require(ready["ready"] and not unserved, f"after a kill: {ready}")
        for publisher in publishers:
            if publisher.acknowledged is not None:
                body = {
                    "model": f"{server.model}:{publisher.domain}",
                    "prompt": "What is there",
                    "max_tokens": 12,
                    "temperature": 0,
                }
                answers.append((body, await ask(client, body)))
                served = answers[-1][1].routing.get("stacks", {}).get(publisher.domain, {}).get("digest")
                outcome.require(served == publisher.acknowledged, f"{publisher.domain} is served at {served}")


def _verify(world: World) -> list[str]:
    """What `brainstacks verify` says is wrong."""
    command = [sys.executable, "-m", "brainstacks.cli", "verify", "--json", "--registry"]
    done = subprocess.run(
        [*command, str(world.registry_path)], cwd=ROOT, capture_output=True, text=True, timeout=VERIFY_SECONDS
    )
    if done.returncode == 0 and not json.loads(done.stdout)["problems"]:
        return []
    return [f"brainstacks verify: {done.stdout[:500]} {done.stderr[:500]}"]
