"""Versions come, go, and come back while clients ask for them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any

import httpx2 as httpx

from tests.soak.client import Reply, ask
from tests.soak.footprint import Footprint
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.server_process import Server
from tests.soak.world import STEADY_FLAGS, Oracle, StackFile, World

DOMAINS = ("chat", "code", "math")
VERSIONS = 4
CLIENTS = 6
ON_DEVICE = 4
PROMPTS = ("Say what it is", "Once more, please")


def flags(world: World) -> tuple[str, ...]:
    """Room for one stack more than there are domains, so that replacing one competes with serving it."""
    return (*STEADY_FLAGS, "--device-stack-bytes", str(ON_DEVICE * world.packed_bytes()))


@dataclass
class Span:
    """A time in which a domain may have been at one version.

    Attributes:
        digest: of the version; None while there is no such domain.
        since, until: from the first moment of the change to it, to the last moment of the one away from it.
    """

    digest: str | None
    since: float
    until: float = inf


@dataclass
class History:
    """One domain as its only writer knows it.

    Attributes:
        numbers: version numbers that can be activated -> digest.
    """

    spans: list[Span] = field(default_factory=lambda: [Span(None, -inf)])
    numbers: dict[int, str] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        return self.spans[-1].digest

    def changed(self, digest: str | None, since: float) -> None:
        self.spans[-1].until = monotonic()
        self.spans.append(Span(digest, since))

    def allows(self, digest: str | None, since: float, until: float) -> bool:
        """Whether the domain may have been at `digest` at some moment of that time."""
        return any(s.digest == digest and s.since <= until and since <= s.until for s in self.spans)


@dataclass(frozen=True)
class Asked:
    """A request, its answer, and when it was under way."""

    body: dict[str, Any]
    domains: tuple[str, ...]
    reply: Reply
    since: float
    until: float


class Publisher:
    """The one who changes the registry: one change at a time, and a move of a stack beside it.

    Args:
        purges: whether deletions may take the files with them, which another server may still need.
    """

    def __init__(
        self, client: httpx.AsyncClient, world: World, outcome: Outcome, seed: int, *, purges: bool = True
    ) -> None:
        self._client = client
        self._purge = ("true", "false") if purges else ("false",)
        self._outcome = outcome
        self._pick = random.Random(seed)
        self._files = {
            domain: [world.file(domain, 1000 * (1 + place) + number) for number in range(VERSIONS)]
            for place, domain in enumerate(DOMAINS)
        }
        self.histories = {domain: History() for domain in DOMAINS}

    async def publish(self, domain: str) -> None:
        file: StackFile = self._pick.choice(self._files[domain])
        history, since = self.histories[domain], monotonic()
        answer = await self._client.put(f"/admin/stacks/{domain}", content=file.path.read_bytes())
        if self._expected("publish", answer, 200, 201):
            history.changed(file.digest, since)
            self._outcome.require(answer.json()["digest"] == file.digest, f"published {answer.json()}")
            history.numbers[answer.json()["version"]] = file.digest

    async def step(self) -> None:
        """A change of one domain, and at the same time a move of another or the same."""
        domain, moved = self._pick.choice(DOMAINS), self._pick.choice(DOMAINS)
        since = monotonic()
        _, found = await asyncio.gather(self._change(domain), self._move(moved))
        gone = self.histories[moved].allows(None, since, monotonic())
        self._outcome.require(found or gone, f"{moved} was not found, and was never deleted")

    async def _change(self, domain: str) -> None:
        history = self.histories[domain]
        kind = self._pick.choice(("publish", "publish", "activate", "activate", "delete", "reload"))
        since = monotonic()
        if kind == "reload":
            self._expected(kind, await self._client.post("/admin/registry/reload"), 200)
        elif kind == "publish" or (history.digest is None and self._pick.random() < 0.8):
            await self.publish(domain)
        elif history.digest is None:
            answer = await self._client.post(f"/admin/stacks/{domain}/activate", json={"version": 1})
            self._expected("activate what is deleted", answer, 404)
        elif kind == "activate":
            number, digest = self._pick.choice(list(history.numbers.items()))
            answer = await self._client.post(f"/admin/stacks/{domain}/activate", json={"version": number})
            if self._expected(kind, answer, 200):
                history.changed(digest, since)
        else:
            purge = {"purge": self._pick.choice(self._purge)}
            if self._expected(kind, await self._client.delete(f"/admin/stacks/{domain}", params=purge), 200):
                history.changed(None, since)
                history.numbers.clear()

    async def _move(self, domain: str) -> bool:
        """Pin, unpin, evict or load (409: in use, evicted it cannot be); whether the domain was found."""
        kind = self._pick.choice(("pin", "unpin", "evict", "load"))
        answer = await self._client.post(f"/admin/stacks/{domain}/{kind}")
        self._expected(kind, answer, 200, 404, *((409,) if kind == "evict" else ()))
        return answer.status_code != 404

    def _expected(self, kind: str, answer: httpx.Response, *statuses: int) -> bool:
        self._outcome.counts[f"{kind} {answer.status_code}"] += 1
        good = answer.status_code in statuses
        self._outcome.require(good, f"{kind} got {answer.status_code}: {answer.text[:300]}")
        return good


async def publishing(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """For `seconds`, and `count` changes at least, change what is served under the load of six clients.

    Each answer is exactly that of the versions that its own `routing` names, and those are versions that the
    domains were at while the request was under way; so is a refusal, for a domain that was deleted.
    """
    outcome, progress = Outcome(), Progress(say)
    asked: list[Asked] = []
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
                progress.at(share, f"of the time, {changes} changes, {len(asked)} answers")
        finally:
            over = True

    async def work(client: httpx.AsyncClient, pick: random.Random) -> None:
        while not over:
            body, domains = draw(pick, server.model)
            since = monotonic()
            asked.append(Asked(body, domains, await ask(client, body), since, monotonic()))

    async with server.client() as client, server.client(admin=True) as admin:
        publisher = Publisher(admin, server.world, outcome, seed)
        for domain in DOMAINS:
            await publisher.publish(domain)
        footprint = Footprint.of(server)
        async with asyncio.TaskGroup() as group:
            group.create_task(change(publisher))
            for number in range(CLIENTS):
                group.create_task(work(client, random.Random(1000 * seed + number)))
    await footprint.compare(server, outcome)
    oracle = Oracle(server.world)
    for one in asked:
        outcome.counts["answered" if one.reply.whole else f"refused {one.reply.status}"] += 1
        wrong = problem(one, publisher.histories, oracle)
        outcome.require(wrong is None, f"{one.domains}: {wrong}")
    outcome.require(outcome.counts["answered"] >= CLIENTS, f"{outcome.counts['answered']} answers: no load")
    return outcome


def draw(pick: random.Random, model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A greedy request, by a domain's name or by fixed weights."""
    domains = tuple(pick.sample(DOMAINS, k=pick.choice((1, 1, 2))))
    body = {
        "model": model,
        "prompt": pick.choice(PROMPTS),
        "max_tokens": 16,
        "temperature": 0,
        "ignore_eos": True,
        "stream": pick.random() < 0.5,
    }
    if len(domains) == 1 and pick.random() < 0.5:
        body["model"] = f"{model}:{domains[0]}"
    else:
        weights = dict(zip(domains, (1.0, 0.8), strict=False))
        body["routing"] = {"mode": "fixed", "weights": weights}
    return body, domains


def problem(asked: Asked, histories: dict[str, History], oracle: Oracle, behind: float = 0.0) -> str | None:
    """What is wrong with an answer, if anything is, of a server that may be `behind` by so many seconds."""
    reply = asked.reply
    if not reply.whole:
        gone = any(histories[name].allows(None, asked.since - behind, asked.until) for name in asked.domains)
        names = {404: (None, "model"), 400: ("routing.weights",)}.get(reply.status, ())
        if gone and reply.error is not None and reply.error.get("param") in names:
            return None
        return f"status {reply.status}: {reply.error}"
    for name in asked.domains:
        digest = reply.routing["stacks"][name]["digest"]
        if not histories[name].allows(digest, asked.since - behind, asked.until):
            return f"{name} was not at {digest[:12]} while the request was under way"
    expected = oracle.text(reply.routing, asked.body)
    return None if reply.texts == {0: expected} else f"got {reply.texts}, not {expected!r}"
