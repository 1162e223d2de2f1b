"""The server under load: many streaming clients at once, over mixes of compositions.

    python -m benchmarks.http_load --clients 16

Each client sends its next request as soon as its last one has ended. Clients and server share the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any

import httpx2 as httpx
import typer

from benchmarks.instruments import options
from benchmarks.instruments.registries import served
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, percentile, write_results
from benchmarks.instruments.timing import Progress
from benchmarks.serving import traffic
from benchmarks.serving.http_client import Stream, completion, stream
from benchmarks.serving.server_process import ServerProcess, running
from brainstacks.base_model import identify_base

NAME = "http_load"
WARM_UP_TOKENS = 8
POPULATION = 16
"""Compositions that the mixes draw from."""


@dataclass(frozen=True)
class Load:
    """What came of one mix in one round."""

    seconds: float
    streams: tuple[Stream, ...]

    @property
    def errors(self) -> list[str]:
        return [each.error for each in self.streams if each.error is not None]

    @property
    def rate(self) -> float:
        """Completion tokens of all clients per second, prefill and routing included."""
        return sum(each.tokens for each in self.streams) / self.seconds

    def first_ms(self, percent: float) -> float:
        return 1000 * percentile([s.first_s for s in self.streams if s.error is None], percent)

    def gap_ms(self, percent: float) -> float:
        gaps = [to - since for s in self.streams if s.error is None for since, to in s.gaps]
        return 1000 * percentile(gaps, percent)


def mixes(domains: Sequence[str], count: int, seed: int) -> dict[str, list[traffic.Composition]]:
    """Name -> the composition of each of `count` requests; all but the base's have four active stacks."""
    population = traffic.distinct(domains, POPULATION, seed)
    return {
        "base only": [{}] * count,
        "identical": [population[0]] * count,
        "distinct": [population[i % POPULATION] for i in range(count)],
        "zipf": [population[i] for i in traffic.zipf(POPULATION, count, seed)],
    }


async def load(
    server: ServerProcess,
    compositions: Sequence[traffic.Composition],
    clients: int,
    tokens: int,
    first_number: int,
) -> Load:
    """Send one request per composition, `clients` at a time.

    Args:
        first_number: of the first prompt; no two numbers give the same one.

    Raises:
        RuntimeError: every request failed.
    """
    todo = iter(enumerate(compositions, first_number))
    done: list[Stream] = []
    limits = httpx.Limits(max_connections=clients)

    async def work(client: httpx.AsyncClient) -> None:
        for number, weights in todo:  # one iterator for all clients: each takes the next that is left
            body = completion(server.model, traffic.question(number), tokens, weights)
            done.append(await stream(client, body))

    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        start = perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        result = Load(perf_counter() - start, tuple(done))
    if len(result.errors) == len(done):
        raise RuntimeError(f"every request failed; the first one: {result.errors[0]}")
    return result


def measure(
    server: ServerProcess,
    domains: Sequence[str],
    clients: int,
    requests: int,
    tokens: int,
    rounds: int,
    seed: int,
) -> dict[str, list[Load]]:
    """Every mix in turn, in each round."""
    count = clients * requests
    plans = mixes(domains, count, seed)
    found: dict[str, list[Load]] = {mix: [] for mix in plans}
    number = 0
    for compositions in plans.values():  # uncounted: the first requests of all
        asyncio.run(load(server, compositions[:clients], clients, WARM_UP_TOKENS, number))
        number += clients
    progress = Progress(rounds * len(plans))
    for _ in range(rounds):
        for mix, compositions in plans.items():
            result = asyncio.run(load(server, compositions, clients, tokens, number))
            number += count
            found[mix].append(result)
            progress.done(f"{mix}: {result.rate:.1f} tok/s, {len(result.errors)} errors")
    return found


def summary(loads: Sequence[Load]) -> dict[str, Any]:
    return {
        "tokens_per_second": Spread.of(each.rate for each in loads),
        "first_token_ms_p50": Spread.of(each.first_ms(50) for each in loads),
        "first_token_ms_p99": Spread.of(each.first_ms(99) for each in loads),
        "inter_token_ms_p50": Spread.of(each.gap_ms(50) for each in loads),
        "inter_token_ms_p99": Spread.of(each.gap_ms(99) for each in loads),
        "requests": sum(len(each.streams) for each in loads),
        "errors": sorted(error for each in loads for error in each.errors),
    }


def main(
    clients: Annotated[int, typer.Option(min=1, help="Streaming clients at once.")] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each client, per mix and round.")] = 2,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of each completion.")] = 32,
    rounds: options.Rounds = 3,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Real clients on a real server: time to first token, gaps between tokens, throughput, errors.

    The server serves ten random r16 stacks. The mixes: the base alone; all requests with one composition of
    four; sixteen compositions in turn; and sixteen of which the k-th comes up in proportion to 1/k.

    A quick look: python -m benchmarks.http_load --clients 4 --requests 1 --rounds 1 --tokens 8
    """
    facts = machine()
    flags = options.flags(base, quantization, device)
    with served(identify_base(base), seed=seed) as stacks, running(stacks.path, flags) as server:
        found = measure(server, stacks.random, clients, requests, tokens, rounds, seed)
    summaries = {mix: summary(loads) for mix, loads in found.items()}
    header = [
        *("mix", "tok/s", "first token, ms: p50", "p99", "between tokens, ms: p50", "p99"),
        *("requests", "errors"),
    ]
    rows = [
        [mix, *(value if key != "errors" else len(value) for key, value in values.items())]
        for mix, values in summaries.items()
    ]
    chosen = options.asked(
        base,
        quantization,
        device,
        clients=clients,
        requests=requests,
        tokens=tokens,
        rounds=rounds,
        seed=seed,
    )
    note = f"{clients} clients. Median (min..max) of {rounds} rounds, of each round's percentile.\n\n"
    text = note + markdown_table(header, rows)
    write_results(NAME, {"machine": facts, "settings": chosen, "mixes": summaries}, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
