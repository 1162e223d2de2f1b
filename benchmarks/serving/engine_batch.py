"""The engine as a contestant: its steps, as its thread runs them, with one request per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks.instruments import decode_case
from benchmarks.instruments.registries import Served
from benchmarks.instruments.timing import Contestant, OnStep
from benchmarks.serving import traffic
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

Reply = Event | Routing | BrainstacksError


def request(
    name: str, prompt: Sequence[int], tokens: int, composition: CompositionRequest
) -> GenerationRequest:
    """Greedy, to exactly `tokens` tokens."""
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return GenerationRequest(name, tuple(prompt), sampling, composition)


def fixed(weights: Mapping[str, float]) -> CompositionRequest:
    """These weights; none of them is the base alone."""
    return CompositionRequest("fixed", weights) if weights else CompositionRequest("base")


def advance(engine: StepEngine) -> None:
    """One step, or, where nothing can run before a stack is loaded, a wait for one."""
    if engine.can_step:
        engine.step()
    else:
        engine.wait(1.0)


def engine_batch(
    engine: StepEngine, prompts: Sequence[Sequence[int]], rows: Sequence[Mapping[str, float]]
) -> Contestant:
    """One request per row, all at once, row i composed with the weights `rows[i]`."""

    def generate(tokens: int, on_step: OnStep) -> None:
        fresh: dict[int, list[int]] = {}
        errors: list[BrainstacksError] = []

        def sink(row: int, reply: Reply) -> None:
            if isinstance(reply, BrainstacksError):
                errors.append(reply)
            elif isinstance(reply, TextEvent):
                fresh.setdefault(row, []).extend(reply.token_ids)

        for row, (prompt, weights) in enumerate(zip(prompts, rows, strict=True)):
            engine.add(request(f"row-{row}", prompt, tokens, fixed(weights)), partial(sink, row))
        while engine.has_work:
            advance(engine)
            if fresh:
                on_step(fresh)
                fresh.clear()
        if errors:
            raise errors[0]

    return Contestant(generate, rows=len(prompts))


def compositions(stacks: Served, batch: int, seed: int) -> dict[str, list[traffic.Composition]]:
    """Contestant of the engine -> the composition of each row."""
    four = traffic.adjacent(stacks.random)
    found: dict[str, list[traffic.Composition]] = {
        decode_case.BASE_ONLY: [{}] * batch,
        decode_case.ADJACENT: [four] * batch,
        decode_case.APART: [traffic.apart(stacks.random)] * batch,
    }
    if stacks.trained:
        found[decode_case.TRAINED] = [dict.fromkeys(stacks.trained, 1.0)] * batch
    if batch > 1:
        found[decode_case.REWEIGHTED] = traffic.reweighted(four, batch, seed)
        found[decode_case.DISTINCT] = traffic.distinct(stacks.random, batch, seed)
    return found
