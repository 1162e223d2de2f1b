"""One linear of a base, a step's products without the step: ours beside what PyTorch brings.

    python -m benchmarks.libraries

One thread. Each contestant has so many copies of the weight, multiplied in turn, that no cache holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numba import njit
from torch import Tensor

from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, write_results
from benchmarks.instruments.timing import Progress
from brainstacks.kernels.atomics import call
from brainstacks.kernels.products import AHEAD, FAR, product_address
from brainstacks.kernels.tiles import CHUNK, PANEL
from brainstacks.kernels.vectors import ISA
from brainstacks.layers.blocks import Blocks
from brainstacks.layers.panels import LARGEST, Memory, aligned_zeros, of_blocks

NAME = "libraries"

COLD_BYTES, MOST_COPIES = 96 << 20, 512
"""Of all copies of a weight together, as far as so many are enough."""

BLOCK = 32
"""Inputs that share a scale, where a contestant has blocks."""

OURS_4 = "ours: NF4 x int8"
OURS_8 = "ours: int8 x int8"
INT4 = "torch _weight_int4pack_mm: 4 bits x bfloat16"
INT8 = "torch _weight_int8pack_mm: int8 x bfloat16"
BFLOAT16 = "torch linear, bfloat16"
FLOAT32 = "torch linear, float32"

Pass = Callable[[], None]
"""Multiply with each copy once."""


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _every_panel(
    product: Any, codes: Any, codes_step: Any, scales: Any, scales_step: Any, levels: Any, x: Any,
    x_step: Any, factors: Any, sums: Any, block_step: Any, nothing: Any, out: Any, out_step: Any,
    blocks: Any, chunks: Any, rows: Any, tokens: Any, panels: Any,
) -> None:  # fmt: skip
    for p in range(panels):
        call(
            product, codes + p * codes_step, scales + p * scales_step, 0, levels, x, x_step, factors, sums,
            block_step, nothing, out + 4 * PANEL * p, out_step, blocks, chunks, rows, tokens, AHEAD, FAR,
        )  # fmt: skip


def ours(weight: Tensor, tokens: int, *, nibbles: bool) -> tuple[Pass, int]:
    """Our product, of activations that are int8 already: a step rounds them once for all that reads them."""
    d_out, d_in = weight.shape
    scales: Any = weight.view(d_out, -1, BLOCK).abs().amax(-1).numpy()
    if nibbles:
        codes: Any = torch.randint(0, 16, (d_out, d_in)).numpy().astype(np.uint8)
        blocks = Blocks(codes, np.linspace(-1, 1, 16).astype(np.float32), scales, None, BLOCK)
    else:
        codes = torch.randint(-LARGEST, LARGEST, (d_out, d_in)).numpy().astype(np.int8)
        blocks = Blocks(codes, None, scales / np.float32(LARGEST), None, BLOCK)
    packed = of_blocks(blocks, fast=True)
    memory = Memory()
    copies = [
        (memory.keep(packed.codes), memory.keep(packed.scales))
        for _ in range(_copies(packed.codes.nbytes + packed.scales.nbytes))
    ]
    x = aligned_zeros((tokens, d_in), np.int8)
    factors, sums = (aligned_zeros((tokens, d_in // BLOCK), kind) for kind in (np.float32, np.int32))
    out, nothing = aligned_zeros((tokens, d_out + CHUNK), np.float32), aligned_zeros([PANEL], np.float32)
    rows, levels_, address = np.arange(tokens), memory.keep(packed.levels), product_address(packed.kind)

    def once() -> None:
        for each, its_scales in copies:
            _every_panel(
                address, each.ctypes.data, each.strides[0], its_scales.ctypes.data, its_scales.strides[0],
                levels_.ctypes.data, x.ctypes.data, x.strides[0], factors.ctypes.data, sums.ctypes.data,
                sums.strides[0], nothing.ctypes.data, out.ctypes.data, out.strides[0], d_in // BLOCK,
                BLOCK // CHUNK, rows.ctypes.data, tokens, packed.count,
            )  # fmt: skip

    return once, len(copies)


def _copies(nbytes: int) -> int:
    return min(MOST_COPIES, -(-COLD_BYTES // nbytes))


def _torch(make: Callable[[], Any], nbytes: int, multiply: Callable[[Any], Tensor]) -> tuple[Pass, int]:
    copies = [make() for _ in range(_copies(nbytes))]

    def once() -> None:
        for copy in copies:
            multiply(copy)

    return once, len(copies)


def contestants(weight: Tensor, tokens: int) -> dict[str, tuple[Pass, int]]:
    """Each contestant's pass over its copies of a weight [d_out, d_in], and how many these are."""
    d_out, d_in = weight.shape
    x = torch.randn(tokens, d_in)
    half = x.bfloat16()
    scales = weight.abs().amax(1) / LARGEST
    whole = (weight / scales[:, None]).round().to(torch.int8)
    codes, pairs = torch.randint(0, 16, (d_out, d_in), dtype=torch.int32), torch.ones(d_in // BLOCK, d_out, 2)
    linear = torch.nn.functional.linear
    aten: Any = torch.ops.aten
    found = {OURS_4: ours(weight, tokens, nibbles=True), OURS_8: ours(weight, tokens, nibbles=False)}
    if ISA.lanes == 0:
        found = {}
    return found | {
        INT4: _torch(
            lambda: aten._convert_weight_to_int4pack_for_cpu(codes, 1),
            d_out * d_in // 2,
            lambda copy: aten._weight_int4pack_mm_for_cpu(half, copy, BLOCK, pairs.bfloat16()),
        ),
        INT8: _torch(
            whole.clone, d_out * d_in, lambda copy: aten._weight_int8pack_mm(half, copy, scales.bfloat16())
        ),
        BFLOAT16: _torch(weight.bfloat16().clone, 2 * d_out * d_in, lambda copy: linear(half, copy)),
        FLOAT32: _torch(weight.clone, 4 * d_out * d_in, lambda copy: linear(x, copy)),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(
    tokens: Annotated[str, typer.Option(help="Rows, separated by commas.")] = "1,16,256",
    d_in: Annotated[int, typer.Option(min=BLOCK, help="A multiple of 32.")] = 576,
    d_out: Annotated[int, typer.Option(min=PANEL, help="A multiple of 16.")] = 1536,
    rounds: options.Rounds = 5,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Microseconds of one linear by who computes it; all in turn.

    A quick look: python -m benchmarks.libraries --rounds 1 --tokens 1
    """
    if d_in % BLOCK or d_out % PANEL:
        raise typer.BadParameter(f"{d_out} x {d_in}: inputs are a multiple of {BLOCK}, outputs of {PANEL}")
    sizes = options.positive_list(tokens, "numbers of rows such as 1,16,256")
    torch.manual_seed(seed)
    facts = machine() | {"torch_threads": 1}
    weight = torch.randn(d_out, d_in) / d_in**0.5
    found: dict[tuple[int, str], list[float]] = {}
    with _one_thread(), torch.inference_mode():
        progress = Progress(rounds * len(sizes))
        for size in sizes:
            passes = contestants(weight, size)
            for once, _ in passes.values():
                once()  # compiled and packed
            for _ in range(rounds):
                for name, (once, copies) in passes.items():
                    begin = perf_counter()
                    once()
                    found.setdefault((size, name), []).append(1e6 * (perf_counter() - begin) / copies)
                progress.done(f"{size} rows")
    spreads = {case: Spread.of(values) for case, values in found.items()}
    names = list(dict.fromkeys(name for _, name in spreads))
    header = ["us a linear", *(f"{size} rows" for size in sizes)]
    rows = [[name, *(spreads[size, name] for size in sizes)] for name in names]
    document = {
        "machine": facts,
        "settings": {"d_in": d_in, "d_out": d_out, "rounds": rounds, "seed": seed},
        "cases": [
            {"rows": size, "contestant": name, "microseconds": spread}
            for (size, name), spread in spreads.items()
        ],
    }
    note = f"{d_out} x {d_in}, one thread, weights from memory; median (min..max) of {rounds} rounds."
    write_results(NAME, document, f"{note}\n\n{markdown_table(header, rows)}", output)


app = options.application(main)

if __name__ == "__main__":
    app()
