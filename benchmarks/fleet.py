"""Replicas behind Ray Serve: what the way through it costs, how load is shared, and whether affinity pays.

    python -m benchmarks.fleet

Counts (loads, hits, shares) are exact. Times are of replicas that share this machine's cores, so that of them
only the ratio at one stream tells something of other machines.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import httpx2 as httpx
import typer
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.instruments import options
from benchmarks.instruments.registries import served
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, write_results
from benchmarks.instruments.timing import Progress, say
from benchmarks.serving import traffic
from benchmarks.serving.http_client import Stream, completion, stream
from benchmarks.serving.server_process import ServerProcess, running
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.stacks.tensors import load_stack

NAME = "fleet"
TURNS = 3
"""Of a conversation."""
CPUS = 0.25
"""Set aside for a replica: no more than are there in all."""


@dataclass(frozen=True)
class Conversation:
    """Attributes:
    weights: its composition.
    said: what its user says, turn by turn.
    """

    weights: traffic.Composition
    said: tuple[str, ...]


def conversations(domains: Sequence[str], count: int, seed: int) -> list[Conversation]:
    """Compositions of one to three domains, by Zipf's law; no two begin alike."""
    draw = random.Random(seed)
    ranks = traffic.zipf(len(domains), 8 * count, seed)
    found = []
    for number in range(count):
        stacks = {domains[rank]: 1.0 for rank in draw.sample(ranks, draw.choice((1, 1, 2, 3)))}
        said = tuple(f"{traffic.question(TURNS * number + turn)} " for turn in range(TURNS))
        found.append(Conversation(stacks, said))
    return found


async def talk(
    server: ServerProcess, found: Sequence[Conversation], clients: int, tokens: int, progress: Progress
) -> tuple[list[Stream], Counter[str]]:
    """Every conversation to its end, `clients` at a time; its streams, and how many each replica gave."""
    streams: list[Stream] = []
    by: Counter[str] = Counter()
    todo: Iterator[Conversation] = iter(found)

    async def note(response: httpx.Response) -> None:
        by[response.headers.get("x-brainstacks-replica", "alone")] += 1

    async def work(client: httpx.AsyncClient) -> None:
        for one in todo:
            prompt = ""
            for said in one.said:
                prompt += said
                streams.append(await stream(client, completion(server.model, prompt, tokens, one.weights)))
            progress.done(f"{len(streams)} requests")

    hooks = {"response": [note]}
    async with httpx.AsyncClient(base_url=server.url, timeout=600, event_hooks=hooks) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return streams, by


def counted(server: ServerProcess) -> Counter[str]:
    """Counters of all replicas together."""
    totals: Counter[str] = Counter()
    with server.admin() as client:
        page = client.get("/metrics").raise_for_status().text
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            totals[sample.name.removeprefix("brainstacks_")] += int(sample.value)
    return totals


def settled(server: ServerProcess, requests: int) -> Counter[str]:
    """The counters once all replicas have told of `requests` requests; they do every few seconds."""
    deadline = perf_counter() + 60
    while perf_counter() < deadline:
        totals = counted(server)
        if totals["request_seconds_count"] >= requests:
            return totals
    raise RuntimeError(f"the metrics tell of {totals['request_seconds_count']} of {requests} requests")


def sharing(
    registry: Path, flags: Sequence[str], found: Sequence[Conversation], clients: int, tokens: int
) -> dict[str, Any]:
    """One fleet, or server, over all conversations."""
    with running(registry, flags) as server:
        progress = Progress(len(found))
        begin = perf_counter()
        streams, by = asyncio.run(talk(server, found, clients, tokens, progress))
        took = perf_counter() - begin
        totals = settled(server, len(streams))
    errors = [one.error for one in streams if one.error is not None]
    admitted = totals["admitted_prompt_tokens_total"]
    stacks = totals["stack_hits_total"] + totals["stack_misses_total"]
    return {
        "requests": len(streams),
        "errors": errors[:5],
        "seconds": took,
        "loads_per_request": totals["stack_loads_total"] / len(streams),
        "stacks_there": totals["stack_hits_total"] / stacks,
        "prompt_reused": totals["reused_prompt_tokens_total"] / admitted,
        "busiest_over_mean": max(by.values()) * len(by) / by.total(),
        "replicas": len(by),
    }


def overhead(registry: Path, flags: Sequence[str], rounds: int, tokens: int) -> dict[str, dict[str, Spread]]:
    """One stream at a time, of a server and of a fleet of one, in turn: first token and time between, ms."""
    taken: dict[str, dict[str, list[float]]] = {
        which: {"first_ms": [], "between_ms": []} for which in ("server", "fleet")
    }

    async def one(server: ServerProcess, number: int) -> Stream:
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            await client.get("/health")  # the connection is there before the clock starts
            return await stream(client, completion(server.model, traffic.question(number), tokens, None))

    # As many threads as the server alone has.
    fleet_flags = (*flags, "--replicas", "1", "--replica-cpus", str(os.cpu_count() or 1))
    with running(registry, flags) as alone, running(registry, fleet_flags) as fleet:
        number = 0
        progress = Progress(rounds)
        for round in range(rounds + 1):
            for which, server in (("server", alone), ("fleet", fleet)):
                told = asyncio.run(one(server, number))
                number += 1
                if told.error is not None:
                    raise RuntimeError(told.error)
                if round:  # the first is a warm-up
                    gaps = [1000 * (to - since) for since, to in told.gaps]
                    taken[which]["first_ms"].append(1000 * told.first_s)
                    taken[which]["between_ms"].append(sum(gaps) / len(gaps))
            if round:
                progress.done("one stream, with and without Ray Serve")
    figures = {which: {name: Spread.of(v) for name, v in each.items()} for which, each in taken.items()}
    figures["ratio"] = {
        name: Spread.of(f / s for f, s in zip(taken["fleet"][name], taken["server"][name], strict=True))
        for name in taken["server"]
    }
    return figures


def main(
    domains: Annotated[int, typer.Option(min=4, help="Random stacks of rank 2.")] = 50,
    room: Annotated[int, typer.Option(min=3, help="Stacks that a replica's device holds.")] = 8,
    replicas: Annotated[int, typer.Option(min=2, help="Of the fleet that affinity is tried on.")] = 3,
    talks: Annotated[int, typer.Option("--conversations", min=4, help="Of three turns each.")] = 200,
    clients: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 12,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each completion.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Of the comparison at one stream.")] = 30,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Ray Serve's share of a stream's time, and replicas with affinity and without.

    Each replica has room for few stacks, and none in host memory: what is not there comes from disk.

    A quick look: python -m benchmarks.fleet --domains 6 --room 3 --replicas 2 --conversations 4 --rounds 2
    """
    facts = machine()
    loaded = options.load(base, quantization, "cpu")
    flags = options.flags(base, quantization, "cpu")
    with served(loaded.identity, random=domains, rank=2, seed=seed) as stacks:
        one = load_stack(next(iter(stacks.files.values())))
        budget = room * PackedStack.pack(one, loaded.dtype).nbytes
        del loaded  # the servers have their own
        say("one stream, with Ray Serve and without")
        ways = overhead(stacks.path, flags, rounds, tokens=32)
        bounded = (*flags, "--device-stack-bytes", str(budget), "--host-stack-bytes", "0")
        found = conversations(stacks.random, talks, seed)
        fleets: dict[str, dict[str, Any]] = {}
        for name, more in {
            "1 replica": ("--replicas", "1"),
            f"{replicas} replicas, by load": ("--replicas", str(replicas), "--no-affinity"),
            f"{replicas} replicas, affinity": ("--replicas", str(replicas)),
        }.items():
            say(name)
            fleet_flags = (*bounded, *more, "--replica-cpus", str(CPUS))
            fleets[name] = sharing(stacks.path, fleet_flags, found, clients, tokens)
    settings = options.asked(
        base, quantization, "cpu", domains=domains, room=room, conversations=talks, clients=clients,
        tokens=tokens, rounds=rounds, seed=seed,
    )  # fmt: skip
    document = {"machine": facts, "settings": settings, "one_stream": ways, "fleets": fleets}
    write_results(NAME, document, page(ways, fleets, domains, room), output)


def page(
    ways: dict[str, dict[str, Spread]], fleets: dict[str, dict[str, Any]], domains: int, room: int
) -> str:
    """Both tables."""
    header = ("one stream", "first token, ms", "between tokens, ms")
    lines = [[which, each["first_ms"], each["between_ms"]] for which, each in ways.items()]
    names = (
        *("requests", "seconds", "loads_per_request", "stacks_there", "prompt_reused"),
        *("busiest_over_mean", "replicas"),
    )
    rows = [
        [name, *(f"{fleet[key]:.3g}" for key in names), len(fleet["errors"])]
        for name, fleet in fleets.items()
    ]
    return (
        "The same server, behind Ray Serve as a fleet of one, and the ratio of the two; the base alone.\n\n"
        + markdown_table(header, lines)
        + f"\n\n{domains} domains, room for {room} on each replica, none in host memory; conversations of "
        f"{TURNS} turns.\n\n"
        + markdown_table(("fleet", *(name.replace("_", " ") for name in names), "errors"), rows)
    )


app = options.application(main)

if __name__ == "__main__":
    app()
