"""Many domains on disk and room for few on the device: what the tiers cost, against all resident.

    python -m benchmarks.residency --domains 50 --budget 4

Requests of one domain each, drawn by Zipf's law, a few at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any

import typer

from benchmarks.instruments import options
from benchmarks.instruments.registries import Served, served
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, write_results
from benchmarks.instruments.timing import Progress
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import Reply, advance, fixed, request
from brainstacks.base_model import BaseModel, identify_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import TextEvent
from brainstacks.errors import BrainstacksError
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.stacks.tensors import load_stack

NAME = "residency"
PROMPT_TOKENS = 16
PROBES = 4
"""Loads that are timed alone, per tier and round."""
LOAD_SECONDS = 120.0

ALL = "all on the device"
HOST = "budget, the rest in host memory"
DISK = "budget, the rest on disk"


@dataclass(frozen=True)
class Round:
    """One round of one contestant.

    Attributes:
        hit_rate: share of requests whose stack was on the device when they came.
        loads: milliseconds to bring one stack to the device, alone, by the tier that it was on.
    """

    tokens_per_second: float
    hit_rate: float
    loads: dict[str, list[float]]


def drive(
    engine: StepEngine, domains: Sequence[str], prompt: Sequence[int], tokens: int, concurrency: int
) -> tuple[float, float]:
    """Serve one request per domain named, `concurrency` at a time.

    Returns:
        tokens per second, and the share of requests whose stack was on the device when they came.
    """
    todo = deque(enumerate(domains))
    errors: list[BrainstacksError] = []
    running = made = hits = 0

    def sink(reply: Reply) -> None:
        nonlocal running, made
        if isinstance(reply, BrainstacksError):
            errors.append(reply)
            running -= 1
        elif isinstance(reply, TextEvent):
            made += len(reply.token_ids)
            running -= reply.finish_reason is not None

    start = perf_counter()
    while todo or engine.has_work:
        while todo and running < concurrency:
            number, domain = todo.popleft()
            hits += engine.stacks.tier(domain) == "device"
            running += 1
            engine.add(request(f"request-{number}", prompt, tokens, fixed({domain: 1.0})), sink)
        advance(engine)
    if errors:
        raise errors[0]
    return made / (perf_counter() - start), hits / len(domains)


def load_times(engine: StepEngine) -> dict[str, list[float]]:
    """Milliseconds to bring stacks to the device, one after another, by the tier that they were on."""
    found: dict[str, list[float]] = {}
    for domain in reversed(list(engine.stacks.serving)):  # the least popular: likely not there
        tier = engine.stacks.tier(domain)
        if tier == "device" or len(found.setdefault(tier, [])) >= PROBES:
            continue
        changed = threading.Event()
        start = perf_counter()
        lease = engine.stacks.acquire([domain], changed.set)
        arrived = lease.ready or changed.wait(LOAD_SECONDS)
        found[tier].append(1000 * (perf_counter() - start))
        engine.stacks.release(lease)
        if lease.error is not None:
            raise lease.error
        if not arrived:
            raise RuntimeError(f"the stack of {domain!r} did not arrive within {LOAD_SECONDS:g} s")
    return found


def device_bytes(base: BaseModel, stacks: Served) -> int:
    """Bytes that the largest of the stacks takes on the device."""
    return max(PackedStack.pack(load_stack(path), base.dtype).nbytes for path in stacks.files.values())


def measure(
    engines: dict[str, StepEngine],
    domains: Sequence[str],
    requests: int,
    tokens: int,
    concurrency: int,
    rounds: int,
    seed: int,
) -> dict[str, list[Round]]:
    """Every contestant in turn, in each round with the same requests."""
    found: dict[str, list[Round]] = {name: [] for name in engines}
    base = next(iter(engines.values())).base
    prompt = traffic.random_prompt(base.vocab_size, PROMPT_TOKENS, seed)
    for engine in engines.values():
        drive(engine, domains[:1], prompt, 2, 1)
    progress = Progress(rounds * len(engines))
    for number in range(rounds):
        drawn = [domains[i] for i in traffic.zipf(len(domains), requests, seed + number)]
        for name, engine in engines.items():
            rate, hit_rate = drive(engine, drawn, prompt, tokens, concurrency)
            found[name].append(Round(rate, hit_rate, load_times(engine)))
            progress.done(f"{name}: {rate:.1f} tok/s, {100 * hit_rate:.0f} % hits")
    return found


def summary(rounds: Sequence[Round], all_resident: Sequence[Round]) -> dict[str, Any]:
    loads: dict[str, list[float]] = {}
    for each in rounds:
        for tier, milliseconds in each.loads.items():
            loads.setdefault(tier, []).extend(milliseconds)
    rates = [each.tokens_per_second for each in rounds]
    return {
        "tokens_per_second": Spread.of(rates),
        "against_all_resident": Spread.ratio(rates, [each.tokens_per_second for each in all_resident]),
        "hit_rate": Spread.of(each.hit_rate for each in rounds),
        "load_ms": {tier: Spread.of(milliseconds) for tier, milliseconds in loads.items()},
    }


def main(
    domains: Annotated[int, typer.Option(min=1, help="Domains in the registry.")] = 50,
    budget: Annotated[int, typer.Option(min=1, help="Stacks that the device has room for.")] = 4,
    rank: Annotated[int, typer.Option(min=1, help="Of the random stacks.")] = 2,
    requests: Annotated[int, typer.Option(min=1, help="Requests in each round.")] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each completion.")] = 16,
    rounds: options.Rounds = 3,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """A small device budget under a long tail of domains: throughput, hits, and loads by tier.

    Three engines serve the same requests in turn: every stack on the device; room for a few there and the
    rest packed in host memory; room for a few and no host memory either, so that each miss reads the disk.

    A quick look: python -m benchmarks.residency --domains 8 --requests 8 --rounds 1
    """
    facts = machine()
    with served(identify_base(base), random=domains, rank=rank, seed=seed) as stacks:
        loaded = options.load(base, quantization, device)
        room = budget * device_bytes(loaded, stacks)
        configs = {
            ALL: EngineConfig(),
            HOST: EngineConfig(device_stack_bytes=room),
            DISK: EngineConfig(device_stack_bytes=room, host_stack_bytes=0),
        }
        bases = [loaded, *(options.load(base, quantization, device) for _ in range(len(configs) - 1))]
        engines = {
            name: StepEngine(each, stacks.registry, config)
            for each, (name, config) in zip(bases, configs.items(), strict=True)
        }
        found = measure(engines, stacks.random, requests, tokens, concurrency, rounds, seed)
    summaries = {name: summary(each, found[ALL]) for name, each in found.items()}
    rows = [
        [
            name,
            each["tokens_per_second"],
            each["against_all_resident"],
            each["hit_rate"],
            "; ".join(f"{tier} {spread}" for tier, spread in each["load_ms"].items()),
        ]
        for name, each in summaries.items()
    ]
    header = ["stacks", "tok/s", "against all resident", "hit rate", "ms to load one, from"]
    text = (
        f"{domains} domains of rank {rank}, room for {budget} ({room / 1e6:.1f} MB), {concurrency} requests "
        f"at a time. Median (min..max) of {rounds} rounds.\n\n{markdown_table(header, rows)}"
    )
    chosen = options.asked(
        base,
        quantization,
        device,
        domains=domains,
        budget=budget,
        rank=rank,
        requests=requests,
        concurrency=concurrency,
        tokens=tokens,
        rounds=rounds,
        seed=seed,
    )
    document = {"machine": facts, "settings": chosen, "device_stack_bytes": room, "contestants": summaries}
    write_results(NAME, document, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
