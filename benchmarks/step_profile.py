"""Where a decode step's time goes on the cpu backend, part by part.

    python -m benchmarks.step_profile

The driver of a step notes how long each phase took, waiting for helpers included. What is left of a step is
Python's: the scheduler, the sampler, text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from benchmarks.instruments import options
from benchmarks.instruments.registries import served
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, write_results
from benchmarks.instruments.roofline import base_bytes, read_bandwidth, stack_bytes, step_bytes
from benchmarks.instruments.timing import Progress, timed
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import compositions, engine_batch
from brainstacks.base_model import identify_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.runner.cpu_backend import CpuBackend, Phase
from brainstacks.errors import BrainstacksError
from brainstacks.layers.projections import INPUT_GROUPS

NAME = "step_profile"

MOST_PHASES = 1 << 20
"""Of one run."""

OUTSIDE = "outside the compiled step"
PARTS = (*(", ".join(names) for names in INPUT_GROUPS), "head", "gates", "A", "attention", "the rest")
"""Of the compiled step: the base's products and the stacks' B, by their input; gates, and the A of stacks of
small rank; the A of others; and what happens between."""


def part_of(phase: Phase) -> str:
    if phase.name == "products":
        return PARTS[phase.group % len(INPUT_GROUPS)]
    return {"head": "head", "gate": "gates", "down": "A", "attend": "attention"}.get(phase.name, "the rest")


def steps_of(phases: Sequence[Phase]) -> list[list[Phase]]:
    """Cut before each norm of the first group."""
    steps: list[list[Phase]] = []
    for phase in phases:
        if phase.name == "norm" and phase.group == 0:
            steps.append([])
        steps[-1].append(phase)
    return steps


def profile(
    engine: StepEngine, prompts: Sequence[Sequence[int]], rows: Sequence[traffic.Composition], tokens: int
) -> dict[str, float]:
    """Part -> milliseconds of a step in which all rows decode; their sum is the step's time."""
    backend = engine.backend
    if not isinstance(backend, CpuBackend):
        raise BrainstacksError(f"steps are computed by {backend.name}; only the cpu backend has phases")
    with backend.traced(MOST_PHASES) as phases:
        run = timed(engine_batch(engine, prompts, rows), tokens)
    steps = run.decoded // len(rows)
    spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for step in steps_of(phases)[-steps:]:
        for phase in step:
            spent[part_of(phase)] += 1000 * phase.seconds / steps
    whole = 1000 * run.decode_s / steps
    return spent | {OUTSIDE: whole - sum(spent.values())}


def main(
    batch_sizes: Annotated[str, typer.Option(help="Separated by commas.")] = "1,16",
    rounds: options.Rounds = 5,
    tokens: Annotated[int, typer.Option(min=3, help="Tokens to generate per row in each run.")] = 24,
    prompt_tokens: options.PromptTokens = 32,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    registry: options.Trained = options.DEMO_REGISTRY,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Milliseconds of a decode step by part, for each batch size and composition.

    A quick look: python -m benchmarks.step_profile --rounds 1 --tokens 8 --batch-sizes 4
    """
    batches = options.positive_list(batch_sizes, "batch sizes such as 1,4,16")
    facts = machine()
    with served(identify_base(base), trained=registry, seed=seed) as stacks:
        loaded = options.load(base, quantization, "cpu")
        config = EngineConfig(max_batch_size=max(batches), prefix_caching=False)
        engine = StepEngine(loaded, stacks.registry, config)
        facts["backend"] = engine.backend.name
        prompts = traffic.random_prompts(loaded.vocab_size, prompt_tokens, max(batches), seed)
        cases = {
            (batch, name): rows
            for batch in batches
            for name, rows in compositions(stacks, batch, seed).items()
        }
        for (batch, _), rows in cases.items():  # uncounted: loads what later runs find ready
            profile(engine, prompts[:batch], rows, 3)
        stack_sizes = {name: stack_bytes(engine, path) for name, path in stacks.files.items()}
        sizes = {
            case: step_bytes(base_bytes(engine), rows, stack_sizes).chosen_experts
            for case, rows in cases.items()
        }
        found: dict[tuple[int, str], list[Mapping[str, float]]] = {case: [] for case in cases}
        progress = Progress(rounds * len(cases))
        bandwidth = []
        for _ in range(rounds):
            bandwidth.append(read_bandwidth(loaded.device))
            for case, rows in cases.items():
                found[case].append(profile(engine, prompts[: case[0]], rows, tokens))
                progress.done(f"{case[0]} rows, {case[1]}: {sum(found[case][-1].values()):.1f} ms a step")
    speed = Spread.of(bandwidth)
    documents, text = report(found, sizes, speed.median)
    chosen = options.asked(
        base, quantization, "cpu", rounds=rounds, tokens=tokens, prompt_tokens=prompt_tokens, seed=seed
    )
    document = {"machine": facts, "settings": chosen, "read_bandwidth": speed, "cases": documents}
    note = (
        f"Milliseconds of a step; median of {rounds} rounds. Memory is read at {speed.median / 1e9:.1f} GB/s."
    )
    write_results(NAME, document, f"{note}\n\n{text}", output)


def report(
    found: Mapping[tuple[int, str], Sequence[Mapping[str, float]]],
    sizes: Mapping[tuple[int, str], int],
    bandwidth: float,
) -> tuple[list[dict[str, Any]], str]:
    """A table per batch, and its figures.

    Args:
        found: (batch, composition) -> part -> milliseconds, of each round.
        sizes: bytes that its step reads.
        bandwidth: bytes per second.
    """
    documents: list[dict[str, Any]] = []
    tables = []
    for batch in dict.fromkeys(batch for batch, _ in found):
        columns = {name: rounds for (size, name), rounds in found.items() if size == batch}
        rows = [[part] for part in (*PARTS, OUTSIDE, "step", "MB read", "ms for these at that speed")]
        for name, rounds in columns.items():
            spreads = {part: Spread.of(one[part] for one in rounds) for part in (*PARTS, OUTSIDE)}
            spreads["step"] = Spread.of(sum(one.values()) for one in rounds)
            read = sizes[batch, name]
            figures = [f"{spread.median:.2f}" for spread in spreads.values()]
            figures += [f"{read / 1e6:.0f}", f"{1000 * read / bandwidth:.2f}"]
            for row, figure in zip(rows, figures, strict=True):
                row.append(figure)
            documents.append(
                {"batch_size": batch, "contestant": name, "bytes_read": read, "milliseconds": spreads}
            )
        header = ["part", *(name.removeprefix("engine: ") for name in columns)]
        tables.append(f"## Batch of {batch}\n\n{markdown_table(header, rows)}")
    return documents, "\n\n".join(tables)


app = options.application(main)

if __name__ == "__main__":
    app()
