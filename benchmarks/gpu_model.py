"""What a decode step ought to take on a GPU, by a model: bytes and launches of the program, no measurement.

    python -m benchmarks.gpu_model

The cuda backend's step and the sampler run on a GPU that computes nothing, for decoders of real sizes; each
operator that is a launch is noted with the bytes that it moves. A launch then takes as long as what bounds it
most: a floor, memory, products, and for our own kernels what their busiest multiprocessor reads and how many
loads wait for one another (`instruments/gpu_time.py`). PyTorch's and bitsandbytes' launches are taken to have
no such waits, so the base is rather too fast, and the ratios are rather too low. Nothing here was measured.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer

from benchmarks.instruments import options
from benchmarks.instruments.decode_model import APPLIED, BASE, OWN, SAME, STACKS, Case, decode_step
from benchmarks.instruments.decoders import GEMMA_3_12B, LLAMA_3_8B, NAMES
from benchmarks.instruments.gpu_time import FAST, GPUS, PARTS, SLOW, Assumed, Gpu, Launch, seconds
from benchmarks.instruments.results import RESULTS, machine, markdown_table, met, write_results
from benchmarks.instruments.timing import say

NAME = "gpu_model"
GOAL = 0.8
"""Of the base's speed that four stacks are to keep."""
BATCHES = "1,8,32,64"
COSTLIEST = 3
"""Kinds of launches that are named where the goal is not met."""


@dataclass(frozen=True)
class Range:
    """Under the assumptions `FAST` and `SLOW`."""

    fast: float
    slow: float

    def __str__(self) -> str:
        return "{:.3g}..{:.3g}".format(*sorted((self.fast, self.slow)))


@dataclass(frozen=True)
class Cost:
    """Of all launches of one kind in a step, each by itself: milliseconds, and what bounds them."""

    name: str
    ms: Range
    bound: str


@dataclass(frozen=True)
class Row:
    """Attributes:
    launches: of a step by part; megabytes and milliseconds likewise of a step.
    apart: milliseconds where the first launches of deltas do not run beside the base's.
    ratio: speed with deltas over speed without.
    best: the same, were our kernels bound by nothing but memory, products and the floor.
    by_bytes: the same by bytes alone.
    roofline: milliseconds of these bytes at the full bandwidth, base and composed.
    costs: of deltas' launches, the costliest first.
    """

    decoder: str
    gpu: str
    rows: int
    mix: str
    launches: dict[str, int]
    mb_base: float
    mb_deltas: float
    roofline: tuple[float, float]
    base: Range
    composed: Range
    apart: Range
    ratio: Range
    best: Range
    by_bytes: float
    costs: tuple[Cost, ...]

    @property
    def goal(self) -> str:
        ends = {met(ratio >= GOAL) for ratio in (self.ratio.fast, self.ratio.slow)}
        return ends.pop() if len(ends) == 1 else "open"


def row(case: Case, gpu: Gpu, alone: Sequence[Launch], composed: Sequence[Launch]) -> Row:
    """Of launches without and with deltas."""

    def ms(launches: Sequence[Launch], *, beside: bool = True) -> Range:
        return Range(*(1e3 * seconds(launches, gpu, assumed, beside=beside) for assumed in (FAST, SLOW)))

    def over(a: Range, b: Range) -> Range:
        return Range(a.fast / b.fast, a.slow / b.slow)

    base, both = ms(alone), ms(composed)
    ideal = [ms([one.without_waits() for one in launches]) for launches in (alone, composed)]
    moved, with_deltas = (sum(one.nbytes for one in launches) for launches in (alone, composed))
    count = Counter(one.part for one in composed)
    return Row(
        case.decoder, gpu.name, case.rows, case.mix, {part: count[part] for part in PARTS},
        moved / 1e6, (with_deltas - moved) / 1e6,
        (1e3 * moved / gpu.bandwidth, 1e3 * with_deltas / gpu.bandwidth),
        base, both, ms(composed, beside=False), over(base, both), over(*ideal), moved / with_deltas,
        costs(composed, gpu),
    )  # fmt: skip


def costs(composed: Sequence[Launch], gpu: Gpu) -> tuple[Cost, ...]:
    """By kind of deltas' launches, the costliest first."""
    kinds: dict[str, list[Launch]] = defaultdict(list)
    for one in composed:
        if one.part in ("down", "up"):
            kinds[one.name].append(one)

    def ms(launches: Sequence[Launch], assumed: Assumed) -> float:
        return 1e3 * sum(one.seconds(gpu, assumed) for one in launches)

    found = [
        Cost(name, Range(ms(launches, FAST), ms(launches, SLOW)), launches[0].bound(gpu, FAST))
        for name, launches in kinds.items()
    ]
    return tuple(sorted(found, key=lambda cost: -cost.ms.slow))


def table(rows: Sequence[Row]) -> str:
    header = (
        "decoder", "GPU", "rows", "stacks", "launches: linears", "attention", "others", "sampling", "deltas",
        "MB base", "deltas", "roofline ms", "ms base", "ms composed", "ms apart", "ratio", "at best",
        "by bytes", "goal",
    )  # fmt: skip
    cells = [
        (
            one.decoder, one.gpu, one.rows, one.mix,
            *(one.launches[part] for part in PARTS[:4]), one.launches["down"] + one.launches["up"],
            f"{one.mb_base:.0f}", f"{one.mb_deltas:.0f}", "{:.3g}, {:.3g}".format(*one.roofline),
            one.base, one.composed, one.apart, one.ratio, one.best, f"{one.by_bytes:.3f}", one.goal,
        )
        for one in rows
    ]  # fmt: skip
    return markdown_table(header, cells)


def missed(rows: Sequence[Row]) -> str:
    """Where the goal is not met at both ends: which launches cost most, and whether they could cost less."""
    cells = [
        (
            one.decoder, one.gpu, one.rows, one.mix, one.ratio, one.best,
            *(f"{cost.name}: {cost.ms}, {cost.bound}" for cost in one.costs[:COSTLIEST]),
        )
        for one in rows
        if one.goal != met(True)
    ]  # fmt: skip
    header = ("decoder", "GPU", "rows", "stacks", "ratio", "at best")
    return markdown_table((*header, *("costs most, ms and bound by", "then", "then")), cells)


def main(
    decoders: str = typer.Option(f"{LLAMA_3_8B},{GEMMA_3_12B}", help="Sizes, separated by commas."),
    batches: str = typer.Option(BATCHES, help="Rows that decode, separated by commas."),
    context: int = typer.Option(1024, min=1, help="Tokens of each row."),
    output: options.Output = RESULTS,
) -> None:
    """A decode step of base and of four r16 stacks, modelled."""
    unknown = set(decoders.split(",")) - set(NAMES)
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; sizes are known of {', '.join(NAMES)}")
    rows: list[Row] = []
    for decoder in decoders.split(","):
        for batch in options.positive_list(batches, "--batches"):
            say(f"{decoder}: a step of {batch} rows")
            alone = decode_step(Case(decoder, batch, context, BASE))
            for mix in (SAME, OWN)[: min(batch, 2)]:  # one row is of its own
                composed = decode_step(Case(decoder, batch, context, mix))
                rows += [row(composed.case, gpu, alone.launches(gpu), composed.launches(gpu)) for gpu in GPUS]
    text = (
        "A model, not a measurement: no GPU was at hand.\n\n"
        f"NF4 base; {STACKS} stacks of rank 16 x 4 experts, top-2, in one round; {APPLIED} of them on every "
        f"row, the `{SAME}` or each row's `{OWN}`; {context} tokens a row; greedy. Ranges are of what is "
        f"assumed: {FAST}, {SLOW}. `apart` does without the stream beside. `at best`: were our kernels bound "
        f"by memory, products and the floor alone. The goal is a ratio of {GOAL}; `open`: one end has it.\n\n"
        f"{table(rows)}\n\nWhere it is not met at both ends, the launches of deltas that cost most, each by "
        f"itself:\n\n{missed(rows)}"
    )
    document: dict[str, Any] = {
        "machine": machine(),
        "gpus": [asdict(gpu) for gpu in GPUS],
        "assumed": {"fast": asdict(FAST), "slow": asdict(SLOW)},
        "context": context,
        "rows": [asdict(one) | {"goal": one.goal} for one in rows],
    }
    write_results(NAME, document, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
