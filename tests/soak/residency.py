"""Many domains on disk, room for few on the device."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx2 as httpx

from benchmarks.serving.traffic import zipf
from tests.soak.client import Reply, ask
from tests.soak.footprint import Footprint
from tests.soak.outcome import Outcome, Progress, Say
from tests.soak.server_process import Server, metrics
from tests.soak.world import STEADY_FLAGS, Oracle, World

DOMAINS = tuple(f"d{number:02}" for number in range(50))
ON_DEVICE, IN_HOST_MEMORY = 4, 8
CLIENTS = 8
PROMPTS = ("The first of them", "and what follows it", "in the end")


def publish(world: World) -> None:
    for seed, domain in enumerate(DOMAINS):
        world.publish(domain, seed)


def flags(world: World) -> tuple[str, ...]:
    """Room for few of the stacks."""
    each = world.packed_bytes()
    return (
        *STEADY_FLAGS,
        *("--device-stack-bytes", str(ON_DEVICE * each)),
        *("--host-stack-bytes", str(IN_HOST_MEMORY * each)),
    )


async def residency(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """Send `count` requests of one or two domains each, drawn by Zipf's law, within `seconds`.

    Every greedy answer is the one that the same stacks give with all of them resident, and after none of the
    answers do the tiers hold more than their budgets.
    """
    outcome, progress = Outcome(), Progress(say)
    bodies = _bodies(server.model, count, seed)
    replies: list[tuple[dict[str, Any], Reply]] = []
    most = {"device": 0.0, "host": 0.0}
    todo = iter(bodies)
    footprint = Footprint.of(server)

    async def work(client: httpx.AsyncClient) -> None:
        for body in todo:
            replies.append((body, await ask(client, body)))
            samples = await metrics(client)
            for tier in most:
                most[tier] = max(most[tier], _sample(samples, "stack_bytes", tier))
            progress.at(len(replies) / count, f"of {count} requests")

    try:
        async with server.client() as client, asyncio.timeout(seconds):
            before = await metrics(client)
            await asyncio.gather(*(work(client) for _ in range(CLIENTS)))
    except TimeoutError:
        outcome.failures.append(f"{len(replies)} of {count} requests had ended after {seconds:g} s")
    await footprint.compare(server, outcome)
    async with server.client() as client:
        after = await metrics(client)
    for tier, held in most.items():
        budget = _sample(after, "stack_budget_bytes", tier)
        outcome.figures |= {f"{tier}_budget_bytes": budget, f"{tier}_most_bytes": held}
        outcome.require(
            0 < held <= budget, f"the {tier} held {held:g} bytes of stacks, its budget is {budget:g}"
        )
    _observe_loads(outcome, before, after)
    oracle = Oracle(server.world)
    for body, reply in replies:
        outcome.counts["answered" if reply.whole else f"status {reply.status}"] += 1
        good = reply.whole and reply.texts == {0: oracle.text(reply.routing, body)}
        outcome.require(good, f"{body['routing']} got {reply.error or reply.texts}")
    return outcome


def _bodies(model: str, count: int, seed: int) -> list[dict[str, Any]]:
    pick = random.Random(seed)
    draws = iter(zipf(len(DOMAINS), 2 * count, seed))
    bodies = []
    for _ in range(count):
        weights = {DOMAINS[next(draws)]: 1.0}
        if pick.random() < 0.5:
            weights[DOMAINS[next(draws)]] = 0.7
        bodies.append(
            {
                "model": model,
                "prompt": pick.choice(PROMPTS),
                "max_tokens": 12,
                "temperature": 0,
                "ignore_eos": True,
                "stream": pick.random() < 0.5,
                "routing": {"mode": "fixed", "weights": weights},
            }
        )
    return bodies


def _observe_loads(outcome: Outcome, before: dict[str, float], after: dict[str, float]) -> None:
    """What the metrics say of this soak's own hits and loads."""

    def risen(name: str) -> float:
        name = f"brainstacks_stack_{name}"
        return after[name] - before[name]

    hits, misses = risen("hits_total"), risen("misses_total")
    loads, seconds = risen("load_seconds_count"), risen("load_seconds_sum")
    outcome.require(hits > 0 and misses > 0, f"{hits:g} hits and {misses:g} misses: the budget was no test")
    outcome.require(loads > 0 and seconds > 0, f"{loads:g} loads took {seconds:g} s by the metrics")
    outcome.figures["hit_rate"] = hits / max(1.0, hits + misses)
    outcome.figures["mean_load_ms"] = 1000 * seconds / max(1.0, loads)
    for tier in ("host", "disk"):
        outcome.figures[f"loads_from_{tier}"] = risen(f'loads_total{{tier="{tier}"}}')


def _sample(samples: dict[str, float], name: str, tier: str) -> float:
    return samples[f'brainstacks_{name}{{tier="{tier}"}}']
