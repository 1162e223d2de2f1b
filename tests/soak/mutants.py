"""Uploads of stacks and routers in which something was changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import httpx2 as httpx

from tests.soak.attacks import Attack
from tests.soak.canary import Canary
from tests.soak.footprint import Footprint
from tests.soak.hostile import strike
from tests.soak.mutations import mutated
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.overload import DOMAINS
from tests.soak.raw_request import request
from tests.soak.server_process import Server

DOMAIN = DOMAINS[-1]
"""The last, so that it comes back in its place."""
STACK, ROUTER = f"/admin/stacks/{DOMAIN}", "/admin/router"
NAMES = ("", ":base", ":ungated", f":{DOMAINS[0]}", f":{DOMAIN}")
UNTOUCHED = (":base", f":{DOMAINS[0]}")
"""Those whose answer no file for `DOMAIN`, and no router, can change."""
ROUTERS = 0.3
"""Share of the files that are routers."""
FRESH_EVERY = 50
"""Accepted files after which the versions of `DOMAIN` are purged, and all has to answer as before."""
WARM_UP = 60


class Breeder:
    """Makes files, and puts the good ones back. `client` has the admin key."""

    def __init__(self, client: httpx.AsyncClient, server: Server, seed: int) -> None:
        self._client = client
        self._key = {"Authorization": f"Bearer {server.admin_key}"}
        self._pick = random.Random(seed)
        self._good = {
            STACK: server.world.file(DOMAIN, DOMAINS.index(DOMAIN)).path.read_bytes(),
            ROUTER: server.world.router(0).path.read_bytes(),
        }

    def draw(self, count: int) -> Iterator[tuple[str, Attack]]:
        """Where a file goes, and its upload."""
        for _ in range(count):
            target = ROUTER if self._pick.random() < ROUTERS else STACK
            kind, file = mutated(self._good[target], self._pick)
            upload = request(target, file, method="PUT", headers=self._key)
            yield target, Attack(f"{'router' if target == ROUTER else 'stack'} {kind}", upload)

    async def restore(self, target: str) -> None:
        """What serves there is the good one again."""
        (await self._client.put(target, content=self._good[target])).raise_for_status()

    async def purge(self) -> None:
        """Leave nothing of the stack but the good version."""
        (await self._client.delete(STACK, params={"purge": "true"})).raise_for_status()
        await self.restore(STACK)
        await self.restore(ROUTER)


async def mutants(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """Upload `count` mutants within `seconds` to a server of `overload.publish`.

    None is answered by a 5xx or not at all, and every refusal is an error object. After each that was
    accepted all names answer, those that have nothing to do with it as before; then the good file is put
    back, which is a roll-back, and in the end all answer as before, and the server holds what it held.
    """
    outcome, progress = Outcome(), Progress(say)
    try:
        async with asyncio.timeout(seconds), server.client(admin=True) as client:
            canary = Canary(client, server.model, NAMES)
            before = await canary.answers()
            warm_up = Breeder(client, server, seed + 1)
            await _upload(server, warm_up, WARM_UP, canary, Outcome(), Progress(lambda _: None))
            footprint = Footprint.of(server)
            await _upload(server, Breeder(client, server, seed), count, canary, outcome, progress)
            outcome.require(await canary.answers() == before, "the canary has changed")
    except TimeoutError:
        outcome.failures.append(f"not done after {seconds:g} s")
        return outcome
    await footprint.compare(server, outcome)
    return outcome


async def _upload(
    server: Server, breeder: Breeder, count: int, canary: Canary, outcome: Outcome, progress: Progress
) -> None:
    """One after the other, with a look at what each did; then all is put back."""
    before, accepted = await canary.answers(), 0
    for number, (target, upload) in enumerate(breeder.draw(count), start=1):
        status, problem = await strike(server, upload)
        outcome.counts[f"{upload.kind}: {status}"] += 1
        outcome.require(problem is None, f"{number}, {upload.kind}: {problem}")
        if status in (200, 201):
            accepted += 1
            for name, answer in (await canary.answers()).items():
                good = answer.whole and (name not in UNTOUCHED or answer == before[name])
                outcome.require(good, f"{number}, {upload.kind}: then {name or 'the base'} answers {answer}")
            await breeder.restore(target)
            if accepted % FRESH_EVERY == 0:
                await breeder.purge()
                same = await canary.answers() == before
                outcome.require(same, f"{number}, {upload.kind}: all is put back, and others answer")
        progress.at(number / count, f"of {count} files, {accepted} accepted")
    await breeder.purge()
