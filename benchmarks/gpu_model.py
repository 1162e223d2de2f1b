"""What a decode step ought to take on a GPU, by a model: bytes and launches of the program, no measurement.

    python -m benchmarks.gpu_model

The cuda backend's step runs on a GPU that computes nothing, for decoders of real sizes; each operator that is
a launch is noted with the bytes that it moves. A launch then takes as long as its bytes at a share of the
memory's bandwidth, and a floor at the least. Nothing here has been measured on a GPU; the constants of
`instruments/decode_model.py` say what is taken from data sheets and what is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer

from benchmarks.instruments import options
from benchmarks.instruments.decode_model import GPUS, Decode, Gpu, Time, decode
from benchmarks.instruments.decoders import GEMMA_3_12B, LLAMA_3_8B, NAMES
from benchmarks.instruments.results import RESULTS, machine, markdown_table, met, write_results
from benchmarks.instruments.timing import say

NAME = "gpu_model"
GOAL = 0.8
"""Of the base's speed that four stacks are to keep."""
BATCHES = "1,8,32,64"
FLOORS = (1.5, 3.0)
"""Microseconds of a launch in a graph that has next to nothing to do; assumed."""


@dataclass(frozen=True)
class Row:
    """Attributes:
    launches_base, launches_deltas: of a step; MB and milliseconds likewise.
    apart: milliseconds where the first launches of deltas do not run beside the base's.
    ratio: speed with deltas over speed without; bytes: the same by bytes alone, at the full bandwidth.
    """

    decoder: str
    gpu: str
    floor: float
    batch: int
    launches_base: int
    launches_deltas: int
    mb_base: float
    mb_deltas: float
    ms_base: float
    ms_composed: float
    ms_apart: float
    ratio: float
    bytes: float


def row(decoder: str, gpu: Gpu, floor: float, batch: int, alone: Decode, composed: Decode) -> Row:
    """Of one decoder, GPU, floor (us) and batch."""
    base = Time(gpu, floor).of(alone)
    together, apart = (Time(gpu, floor, beside=beside).of(composed) for beside in (True, False))
    moved, more = alone.nbytes(gpu), composed.nbytes(gpu) - alone.nbytes(gpu)
    return Row(
        decoder, gpu.name, floor, batch,
        alone.launches(gpu), composed.launches(gpu) - alone.launches(gpu),
        round(moved / 1e6, 1), round(more / 1e6, 1),
        round(base * 1e3, 2), round(together * 1e3, 2), round(apart * 1e3, 2),
        round(base / together, 3), round(moved / (moved + more), 3),
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    header = (
        "decoder", "GPU", "floor us", "rows", "launches", "+ deltas", "MB", "+ deltas", "ms base",
        "ms composed", "ms apart", "ratio", "by bytes", "goal",
    )  # fmt: skip
    return markdown_table(header, [(*asdict(one).values(), met(one.ratio >= GOAL)) for one in rows])


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
            alone, composed = (decode(decoder, batch, context, stacks) for stacks in (0, 4))
            rows += [row(decoder, gpu, floor, batch, alone, composed) for gpu in GPUS for floor in FLOORS]
    assumed: dict[str, Any] = {gpu.name: asdict(gpu) for gpu in GPUS}
    text = (
        "A model, not a measurement: no GPU was at hand. Four of ten stacks of rank 16 x 4 experts, top-2, "
        f"the same for all rows, {context} tokens each, NF4 base. `floor` is the least that a launch takes; "
        f"`apart` does without the stream beside; the goal is a ratio of {GOAL}.\n\n{table(rows)}"
    )
    document = {
        "machine": machine(),
        "assumed": assumed,
        "context": context,
        "rows": [asdict(r) for r in rows],
    }
    write_results(NAME, document, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
