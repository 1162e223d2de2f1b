"""Decode speed of one stream: the engine against the published serving scheme, interleaved in one run.

    python -m benchmarks.decode_vs_shuttle --rounds 5

Cases: the base alone (against transformers' `generate`), four active stacks of ten random ones that are
resident, and four active stacks of a trained registry. Greedy, a fixed number of tokens, random prompt ids.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer

from benchmarks.common import (
    RESULTS,
    Contestant,
    OnToken,
    Run,
    Spread,
    common_prefix,
    first_tokens,
    interleave,
    machine,
    markdown_table,
    rates,
    ratios,
    write_results,
)
from benchmarks.random_stacks import publish_random_stacks
from benchmarks.shuttle_baseline import ShuttleModel
from brainstacks.base_model import BaseModel, Quantization, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import (
    CompositionRequest,
    Event,
    GenerationRequest,
    Routing,
    SamplingParams,
    TextEvent,
)
from brainstacks.errors import BrainstacksError
from brainstacks.stacks.registry import Registry

DEMO_REGISTRY = Path(__file__).parents[1] / "stacks_registry"
NAME = "decode_vs_shuttle"
SHUTTLE = "shuttle"
RANDOM_CASE = "4 of 10 random stacks, r16 x 4 experts"
RESIDENT = 10
WEIGHTS = (1.0, 0.85, 0.7, 0.55)
"""Of the four active stacks: above the gate, none of them equal."""


@dataclass(frozen=True)
class Case:
    """One comparison, run.

    Attributes:
        against: contestant -> the one that it is compared with.
    """

    name: str
    runs: Mapping[str, list[Run]]
    against: Mapping[str, str]

    def ratio(self, ours: str) -> Spread:
        return ratios(self.runs[ours], self.runs[self.against[ours]])

    def to_document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "contestants": {
                name: {"tokens_per_second": rates(runs), "first_token_ms": first_tokens(runs)}
                for name, runs in self.runs.items()
            },
            "ratios": {f"{ours} / {theirs}": self.ratio(ours) for ours, theirs in self.against.items()},
            "same_tokens": {
                f"{ours} / {theirs}": common_prefix(self.runs[ours][0], self.runs[theirs][0])
                for ours, theirs in self.against.items()
            },
        }

    def rows(self) -> list[list[object]]:
        return [
            [
                self.name,
                name,
                rates(runs),
                first_tokens(runs),
                f"{self.ratio(name)} x {self.against[name]}" if name in self.against else "",
            ]
            for name, runs in self.runs.items()
        ]


def engine_stream(engine: StepEngine, prompt: tuple[int, ...], weights: Mapping[str, float]) -> Contestant:
    """The engine's steps, as its thread runs them, with one request; no weights is the base alone."""
    composition = CompositionRequest("fixed", weights) if weights else CompositionRequest("base")

    def generate(tokens: int, on_token: OnToken) -> None:
        errors: list[BrainstacksError] = []

        def sink(event: Event | Routing | BrainstacksError) -> None:
            if isinstance(event, BrainstacksError):
                errors.append(event)
            elif isinstance(event, TextEvent):
                for token in event.token_ids:
                    on_token(token)

        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        engine.add(GenerationRequest("benchmark", prompt, sampling, composition), sink)
        while engine.has_work:
            engine.step()
        if errors:
            raise errors[0]

    return generate


def shuttle_stream(
    shuttle: ShuttleModel, prompt: tuple[int, ...], weights: Mapping[str, float], *, always_copy: bool
) -> Contestant:
    """The published scheme."""

    def generate(tokens: int, on_token: OnToken) -> None:
        for token in shuttle.generate(prompt, weights, tokens, always_copy=always_copy):
            on_token(token)

    return generate


class _Streamer:
    """What `generate` asks of a streamer: the prompt comes first, then each token."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, ids: torch.Tensor) -> None:
        if self._prompt_seen:
            self._on_token(int(ids))
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""


def transformers_stream(base: BaseModel, prompt: tuple[int, ...]) -> Contestant:
    """transformers' `generate` on the base alone."""
    ids = torch.tensor([prompt], device=base.device)

    def generate(tokens: int, on_token: OnToken) -> None:
        base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=_Streamer(on_token),
        )

    return generate


@dataclass(frozen=True)
class Setting:
    """The two bases, which share nothing, and the work of every case.

    Attributes:
        served: the engine's base.
        plain: the same base for the other side, with its projections and attention as they are.
    """

    served: BaseModel
    plain: BaseModel
    prompt: tuple[int, ...]
    tokens: int
    rounds: int

    def compare(self, name: str, contestants: Mapping[str, Contestant], against: Mapping[str, str]) -> Case:
        print(f"{name}:", flush=True)
        return Case(name, interleave(contestants, self.rounds, self.tokens), against)


def base_case(setting: Setting) -> Case:
    engine = StepEngine(setting.served, None, EngineConfig())
    try:
        return setting.compare(
            "base only",
            {
                "engine": engine_stream(engine, setting.prompt, {}),
                "transformers generate": transformers_stream(setting.plain, setting.prompt),
            },
            {"engine": "transformers generate"},
        )
    finally:
        engine.hooks.detach()


def random_case(setting: Setting, seed: int) -> Case:
    """Four of ten resident stacks: neighbours in the registry, and far apart."""
    with tempfile.TemporaryDirectory() as directory:
        registry = Registry(directory, create=True)
        names = publish_random_stacks(registry, setting.served.identity, RESIDENT, seed=seed)
        step = (RESIDENT - 1) // (len(WEIGHTS) - 1)
        compositions = {
            "engine, apart": dict(zip(names[::step], WEIGHTS, strict=True)),
            "engine, adjacent": dict(zip(names[: len(WEIGHTS)], WEIGHTS, strict=True)),
        }
        return stacks_case(setting, RANDOM_CASE, registry, compositions)


def demo_case(setting: Setting, registry: Registry) -> Case:
    """The first four domains of a trained registry, all of which are resident."""
    names = list(registry.snapshot().domains)
    name = f"{len(WEIGHTS)} of {len(names)} trained stacks"
    composition = dict(zip(names[: len(WEIGHTS)], WEIGHTS, strict=True))
    return stacks_case(setting, name, registry, {"engine": composition})


def stacks_case(
    setting: Setting, name: str, registry: Registry, compositions: Mapping[str, Mapping[str, float]]
) -> Case:
    """The engine with each of `compositions` against the published scheme with the first of them.

    On a CPU the scheme runs a second time without its copies, as PyTorch would run it there.

    Raises:
        BrainstacksError: the registry cannot be served with this base.
    """
    engine = StepEngine(setting.served, registry, EngineConfig())
    shuttle = ShuttleModel(setting.plain, registry)
    try:
        if engine.residency.problems:  # a router, which `engine.problems` asks for, has no part in this
            raise BrainstacksError("the registry cannot be served: " + "; ".join(engine.residency.problems))
        first = next(iter(compositions.values()))
        contestants = {
            label: engine_stream(engine, setting.prompt, weights) for label, weights in compositions.items()
        }
        against = dict.fromkeys(contestants, SHUTTLE)
        contestants[SHUTTLE] = shuttle_stream(shuttle, setting.prompt, first, always_copy=True)
        if setting.plain.device.type == "cpu":
            contestants[f"{SHUTTLE}, no copies"] = shuttle_stream(
                shuttle, setting.prompt, first, always_copy=False
            )
        return setting.compare(name, contestants, against)
    finally:
        shuttle.restore()
        engine.hooks.detach()


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every contestant runs once in each.")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate in each run.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the random prompt.")] = 32,
    base: Annotated[str, typer.Option(help="As for the server.")] = "packaged:smollm2-135m-instruct",
    quantization: Annotated[str, typer.Option(help="nf4, int8 or none.")] = "nf4",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    registry: Annotated[Path, typer.Option(help="A trained registry, for the last case.")] = DEMO_REGISTRY,
    seed: Annotated[int, typer.Option(help="Of the prompt and of the random stacks.")] = 0,
    output: Annotated[Path, typer.Option(help="Directory of the results.")] = RESULTS,
    require: Annotated[
        float | None, typer.Option(help="Exit with 1 where the engine is not this many times faster.")
    ] = None,
) -> None:
    """Compare the engine with the published serving scheme; writes JSON and a table."""
    facts = machine()
    served, plain = (
        load_base(base, quantization=cast(Quantization, quantization), device=device) for _ in range(2)
    )
    prompt = tuple(random.Random(seed).choices(range(served.vocab_size), k=prompt_tokens))
    setting = Setting(served, plain, prompt, tokens, rounds)
    cases = [base_case(setting), random_case(setting, seed)]
    trained = Registry(registry)
    if len(trained.snapshot().domains) >= len(WEIGHTS):
        cases.append(demo_case(setting, trained))
    else:
        print(f"the registry has fewer than {len(WEIGHTS)} domains: the case of trained stacks is left out")
    document = {
        "benchmark": NAME,
        "machine": facts,
        "settings": {
            "base": served.name,
            "quantization": quantization,
            "dtype": str(served.dtype).removeprefix("torch."),
            "device": served.device.type,
            "rounds": rounds,
            "tokens": tokens,
            "prompt_tokens": prompt_tokens,
            "seed": seed,
        },
        "cases": [case.to_document() for case in cases],
    }
    header = ["case", "contestant", "decode, tok/s", "first token, ms", "times as fast"]
    table = markdown_table(header, [row for case in cases for row in case.rows()])
    print(f"\nmedian (min..max) of {rounds} rounds\n\n{table}\n")
    print(f"written: {write_results(NAME, document, table, output).name}")
    slow = [
        f"{case.name}, {ours}: {case.ratio(ours).median}"
        for case in cases
        for ours, theirs in case.against.items()
        if theirs == SHUTTLE and require is not None and case.ratio(ours).median < require
    ]
    if slow:
        print(f"below the required {require} times: {'; '.join(slow)}", file=sys.stderr)
        raise typer.Exit(1)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    app()
