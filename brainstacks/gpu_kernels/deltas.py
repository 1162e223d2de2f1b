"""Deltas of one input group in two launches, for any mix of stacks over the rows.

    gates   g = softmax(top-K of x G^T)                    down: `delta_down`
    hidden  h = w * s * g_e * (A_e x)   of chosen experts
    output  y += sum over pairs of B h                     up: `delta_up`

The tokens are cut into blocks; a **pair** is a block and (`COLUMNS` of the N * r columns of) a slot that some
token of it uses. Which pairs there are, where their factors lie and what they weigh are tensors that a step
fills in again: nothing is compiled or captured for a composition, and a slot that no pair names is not read.
Of a pair, only experts that some token's gate keeps are read. Sums are float32, and none depends on a block's
other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from brainstacks.gpu_kernels.configuration import Configuration
from brainstacks.gpu_kernels.delta_kernels import COLUMNS, down_kernel, up_kernel
from brainstacks.gpu_kernels.launch import INTERPRETED, operator, programs


@dataclass(frozen=True)
class Tile:
    """How the work is cut; products have these sizes.

    Attributes:
        tokens: of a block.
        gate_inputs, inputs: that gates and A sum at a time.
        outputs: of one piece of `delta_up`.
        splits: pieces that a token's inputs may be cut into, at most.
    """

    tokens: int
    gate_inputs: int
    inputs: int
    outputs: int
    splits: int
    warps: int = 4
    stages: int = 3


DECODE = Tile(tokens=16, gate_inputs=512, inputs=128, outputs=64, splits=8)
PREFILL = Tile(tokens=64, gate_inputs=64, inputs=64, outputs=128, splits=1)
TILES = {tile.tokens: tile for tile in (DECODE, PREFILL)}
"""By the tokens of a block."""


def _down_constants(tile: Tile, d_in: int, projections: int, gates: int) -> dict[str, Any]:
    return {
        "D_IN": d_in,
        "PROJECTIONS": projections,
        "TOKENS": tile.tokens,
        "GATES": gates,
        "WIDTH": COLUMNS,
        "GATE_INPUTS": tile.gate_inputs,
        "INPUTS": tile.inputs,
        "STAGES": tile.stages,
        "UPCAST": INTERPRETED,
    }


def _up_constants(tile: Tile, widths: Sequence[int]) -> dict[str, Any]:
    d0, d1, d2 = (*widths, 0, 0)[:3]
    return {
        "D0": d0,
        "D1": d1,
        "D2": d2,
        "PROJECTIONS": len(widths),
        "TOKENS": tile.tokens,
        "WIDTH": COLUMNS,
        "OUTPUTS": tile.outputs,
        "MOST": tile.splits,
        "STAGES": tile.stages,
        "UPCAST": INTERPRETED,
    }


def _down(
    x: Tensor,
    records: Tensor,
    tokens: Tensor,
    pair_block: Tensor,
    pair_weight: Tensor,
    counts: Tensor,
    hidden: Tensor,
    chosen: Tensor,
    layer: int,
    group: int,
    first_projection: int,
    projections: int,
    gates: int,
) -> None:
    tile = TILES[tokens.shape[1]]
    down_kernel[(programs(x.device),)](
        x, records, tokens, pair_block, pair_weight, counts, hidden, chosen, layer, group, first_projection,
        **_down_constants(tile, x.shape[-1], projections, gates), num_warps=tile.warps,
    )  # fmt: skip


def _up(
    out0: Tensor,
    out1: Tensor | None,
    out2: Tensor | None,
    records: Tensor,
    tokens: Tensor,
    block_first: Tensor,
    pair_weight: Tensor,
    counts: Tensor,
    hidden: Tensor,
    chosen: Tensor,
    layer: int,
    group: int,
    first_projection: int,
) -> None:
    tile = TILES[tokens.shape[1]]
    outs = [out for out in (out0, out1, out2) if out is not None]
    up_kernel[(programs(out0.device),)](
        *outs, *[out0] * (3 - len(outs)),
        records, tokens, block_first, pair_weight, counts, hidden, chosen, layer, group, first_projection,
        **_up_constants(tile, [out.shape[-1] for out in outs]), num_warps=tile.warps,
    )  # fmt: skip


delta_down = operator(
    "delta_down(Tensor x, Tensor records, Tensor tokens, Tensor pair_block, Tensor pair_weight, "
    "Tensor counts, Tensor(a!) hidden, Tensor(b!) chosen, int layer, int group, int first_projection, "
    "int projections, int gates) -> ()",
    _down,
)
delta_up = operator(
    "delta_up(Tensor(a!) out0, Tensor(b!)? out1, Tensor(c!)? out2, Tensor records, Tensor tokens, "
    "Tensor block_first, Tensor pair_weight, Tensor counts, Tensor hidden, Tensor chosen, int layer, "
    "int group, int first_projection) -> ()",
    _up,
)


def configurations(dtype: str, d_in: int, widths: Sequence[int]) -> list[Configuration]:
    """As one input group's launches are compiled.

    Args:
        dtype: of activations and factors, in Triton's spelling.
        widths: outputs of the group's projections.
    """
    pointers = dict.fromkeys(("tokens", "block_first", "pair_block", "counts", "chosen"), "*i32")
    pointers |= {"records": "*i64", "hidden": "*fp32", "pair_weight": "*fp32"}
    pointers |= dict.fromkeys(("x", "out0", "out1", "out2"), f"*{dtype}")
    numbers = dict.fromkeys(("layer", "group", "first_projection"), "i32")
    found = []
    for tile in TILES.values():
        of = f"{'decode' if tile is DECODE else 'prefill'} {dtype} {d_in} -> {' '.join(map(str, widths))}"
        for name, kernel, constants in (
            ("down", down_kernel, _down_constants(tile, d_in, len(widths), gates=16)),
            ("up", up_kernel, _up_constants(tile, widths)),
        ):
            types = {arg: (pointers | numbers)[arg] for arg in kernel.arg_names if arg not in constants}
            found.append(
                Configuration(
                    f"{name} {of}", kernel, types, constants, tile.warps, tile.stages, tuple(numbers)
                )
            )
    return found
