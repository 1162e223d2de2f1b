"""Power cuts: the server is killed while its registry is changed, again and again."""

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
STEADY = "math"
"""Never changed: what the routers route to."""
ROUTER = "router"

KINDS = ("publish", "publish", "activate", "delete")
"""What is drawn from; a router is not deleted."""

LONGEST = 0.5
"""Seconds from the first answered changes to the kill, at most."""
VERIFY_SECONDS = 120


class Writer:
    """Changes one domain, or the router, without end. Each has a writer of its own, so that the kill always
    finds changes under way.

    Attributes:
        serves: digest that serves by the last answered change; None where nothing does.
        under_way: kind of the change that was not answered yet, and what serves after it.
        versions: those that there are by the last answered change, number -> digest.
        answered: how many changes were.
    """

    def __init__(self, world: World, name: str, seed: int) -> None:
        self.name = name
        self.serves: str | None = None
        self.under_way: tuple[str, str | None] | None = None
        self.versions: dict[int, str] = {}
        self.answered = 0
        self._path = "/admin/router" if name == ROUTER else f"/admin/stacks/{name}"
        self._world = world
        self._seed = seed
        self._pick = random.Random(seed)

    async def run(self, client: httpx.AsyncClient, first: asyncio.Event) -> None:
        """Change until the server is gone; `first` is set after the first answer, or without one.

        Raises:
            httpx.TransportError: it is gone.
            httpx.HTTPStatusError: it refused.
        """
        try:
            while True:
                kind = self._pick.choice(KINDS) if self.serves is not None else "publish"
                if kind == "delete" and self.name != ROUTER:
                    await self._delete(client)
                elif kind == "activate":
                    await self._activate(client)
                else:
                    await self._publish(client)
                self.under_way = None
                self.answered += 1
                first.set()
        finally:
            first.set()

    async def _publish(self, client: httpx.AsyncClient) -> None:
        self._seed += 1
        router = self.name == ROUTER
        file = self._world.router(self._seed) if router else self._world.file(self.name, self._seed)
        self.under_way = ("publish", file.digest)
        answer = (await client.put(self._path, content=file.path.read_bytes())).raise_for_status()
        self.serves = self.versions[answer.json()["version"]] = file.digest

    async def _activate(self, client: httpx.AsyncClient) -> None:
        number, digest = self._pick.choice(list(self.versions.items()))
        self.under_way = ("activate", digest)
        answer = await client.post(f"{self._path}/activate", json={"version": number})
        answer.raise_for_status()
        self.serves = digest

    async def _delete(self, client: httpx.AsyncClient) -> None:
        self.under_way = ("delete", None)
        purge = {"purge": self._pick.choice(("true", "false"))}
        (await client.delete(self._path, params=purge)).raise_for_status()
        self.serves = None
        self.versions.clear()

    def settle(self, outcome: Outcome) -> None:
        """The server is gone: the registry on disk is as before the change under way, or as after it."""
        manifest = Registry(self._world.registry_path).snapshot()
        history = manifest.router if self.name == ROUTER else manifest.domains.get(self.name)
        found = history.current.digest if history is not None else None
        kind, after = self.under_way or ("nothing", self.serves)
        outcome.require(found in (self.serves, after), f"{self.name} is at {found} after a kill in {kind}")
        outcome.counts[f"{kind} under way: {'old' if found == self.serves else 'new'}"] += 1
        versions = {v.version: v.digest for v in history.versions} if history is not None else {}
        if kind != "delete" or found is not None:
            lost = self.versions.items() - versions.items()
            outcome.require(not lost, f"{self.name} has lost {lost} in {kind}")
        self.serves, self.under_way, self.versions = found, None, versions


async def killing(world: World, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """Kill the server `count` times amid publications, activations and deletions of two domains and of the
    router, and start it again, within `seconds`.

    Each time `brainstacks verify` finds the registry sound, each name is as the last answered change left it
    or as the one under way leaves it, and the next server serves and answers with exactly that.
    """
    outcome, progress = Outcome(), Progress(say)
    pick = random.Random(seed)
    world.publish(STEADY, 1)
    writers = [Writer(world, name, 10**6 * (1 + n)) for n, name in enumerate((*DOMAINS, ROUTER))]
    answers: list[tuple[dict[str, Any], Reply]] = []
    try:
        async with asyncio.timeout(seconds):
            for number in range(count + 1):
                server = Server(world)
                try:
                    await _check(server, writers, outcome, answers)
                    if number == count:
                        break
                    await _kill(server, writers, pick.uniform(0, LONGEST), outcome)
                finally:
                    server.kill()
                for writer in writers:
                    writer.settle(outcome)
                outcome.failures += await asyncio.to_thread(_verify, world)
                progress.at((number + 1) / (count + 1), f"of {count} kills")
    except TimeoutError:
        outcome.failures.append(f"{outcome.counts['kills']} of {count} kills in {seconds:g} s")
    outcome.counts["answered changes"] = sum(writer.answered for writer in writers)
    outcome.require(outcome.counts["kills"] == count, f"{outcome.counts['kills']} of {count} kills")
    oracle = Oracle(world)
    for body, reply in answers:
        good = reply.whole and reply.texts == {0: oracle.text(reply.routing, body)}
        outcome.require(good, f"after a kill {body['model']} answers {reply.error or reply.texts}")
        outcome.counts["answers"] += 1
    return outcome


async def _kill(server: Server, writers: list[Writer], delay: float, outcome: Outcome) -> None:
    """Kill `server` some time after each writer's first change was answered."""
    async with server.client(admin=True) as client:
        first = [asyncio.Event() for _ in writers]
        tasks = [
            asyncio.create_task(writer.run(client, event))
            for writer, event in zip(writers, first, strict=True)
        ]
        for event in first:
            await event.wait()
        await asyncio.wait(tasks, timeout=delay)
        server.kill()
        outcome.counts["kills"] += 1
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            outcome.require(isinstance(ended, httpx.TransportError), f"a change ended in {ended!r}")


async def _check(
    server: Server, writers: list[Writer], outcome: Outcome, answers: list[tuple[dict[str, Any], Reply]]
) -> None:
    """A server that has just started serves what was left to it, all of it."""
    async with server.client(admin=True) as client:
        ready = (await client.get("/ready")).json()
        unserved = [problem for problem in ready["problems"] if "no router" not in problem]
        outcome.require(ready["ready"] and not unserved, f"after a kill: {ready}")
        for writer in writers:
            model = server.model if writer.name == ROUTER else f"{server.model}:{writer.name}"
            body = {"model": model, "prompt": "What is there", "max_tokens": 12, "temperature": 0}
            reply = await ask(client, body)
            if writer.name == ROUTER:
                served = (await client.get("/admin/router")).json().get("digest")
            else:
                served = reply.routing.get("stacks", {}).get(writer.name, {}).get("digest")
            outcome.require(served == writer.serves, f"{writer.name} is served at {served}")
            if writer.serves is not None:
                answers.append((body, reply))
            elif writer.name != ROUTER:
                outcome.require(reply.status == 404, f"{writer.name} is gone, and answers {reply.status}")


def _verify(world: World) -> list[str]:
    """What `brainstacks verify` says is wrong."""
    command = [sys.executable, "-m", "brainstacks.cli", "verify", "--json", "--registry"]
    done = subprocess.run(
        [*command, str(world.registry_path)], cwd=ROOT, capture_output=True, text=True, timeout=VERIFY_SECONDS
    )
    if done.returncode == 0 and not json.loads(done.stdout)["problems"]:
        return []
    return [f"brainstacks verify: {done.stdout[:500]} {done.stderr[:500]}"]
