"""The tokens of seeded requests of every kind, to compare two checkouts: equal, or something has changed.

    python -m benchmarks.seeded_tokens before.json      (in one checkout)
    python -m benchmarks.seeded_tokens after.json       (in the other; then compare the files)

Requests come in waves, so that they meet in batches; they are routed, ungated, of fixed weights or of the
base alone, greedy or drawn with a seed, some with several completions.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.instruments import options
from benchmarks.serving.engine_batch import advance
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest, GenerationRequest, SamplingParams, TextEvent
from brainstacks.stacks.registry import Registry

WAVE = 12
"""Requests that come together."""


def request(number: int, domains: list[str], vocab: int) -> GenerationRequest:
    """The number-th; always the same."""
    chance = random.Random(number)
    prompt = tuple(chance.randrange(vocab) for _ in range(chance.randint(3, 90)))
    some = chance.sample(domains, chance.randint(1, min(3, len(domains))))
    composition = (
        CompositionRequest(),
        CompositionRequest("base"),
        CompositionRequest("ungated"),
        CompositionRequest("fixed", {domain: chance.uniform(0.2, 1.0) for domain in some}),
    )[number % 4]
    sampling = SamplingParams(
        max_tokens=chance.randint(1, 12),
        temperature=chance.choice([0.0, 0.8]),
        top_p=chance.choice([1.0, 0.9]),
        seed=number,
        ignore_eos=True,
    )
    return GenerationRequest(f"request-{number}", prompt, sampling, composition, n=1 + (number % 10 == 0))


def main(
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    requests: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    registry: options.Trained = options.DEMO_REGISTRY,
) -> None:
    """Write the token ids of every completion."""
    loaded = options.load(base, quantization, device)
    engine = StepEngine(loaded, Registry(registry), EngineConfig())
    domains = sorted(Registry(registry).snapshot().domains)
    tokens: dict[str, list[int]] = {}

    def sink(number: int, event: Any) -> None:
        if isinstance(event, TextEvent):
            tokens.setdefault(f"{number}.{event.index}", []).extend(event.token_ids)
        elif isinstance(event, Exception):
            raise event

    for first in range(0, requests, WAVE):
        for number in range(first, min(requests, first + WAVE)):
            one = request(number, domains, loaded.vocab_size)
            engine.add(one, lambda event, number=number: sink(number, event))  # type: ignore[misc]
        while engine.has_work:
            advance(engine)
    output.write_text(json.dumps(tokens, indent=0, sort_keys=True) + "\n")
    print(f"{len(tokens)} completions, {sum(map(len, tokens.values()))} tokens: {output}")


app = options.application(main)

if __name__ == "__main__":
    app()
