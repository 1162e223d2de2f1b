"""The tables that a compiled step reads: records of addresses, counts and constants.

Fields that name an array hold its address, 0 where there is none. `T` are the packed tokens of the step.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from brainstacks.kernels import internal
from brainstacks.kernels.atomics import as_pointer

BLOCK = 16
"""Tokens of a block of the KV cache."""

STEP = np.dtype(
    [
        # what the model is
        ("layers", "i8"), ("hidden", "i8"), ("width", "i8"),  # width: hidden, filled up to whole panels
        ("heads", "i8"), ("kv_heads", "i8"), ("dim", "i8"), ("depth", "i8"), ("gelu", "i8"), ("eps", "f8"),
        ("layer_table", "i8"), ("group_table", "i8"), ("linear_table", "i8"), ("final_norm", "i8"),
        ("middle", "i8"),  # the layer whose input the router reads
        ("plain", "i8"), ("ones", "i8"),  # the product for keys and values as they are stored; 16 float32
        ("order", "i8"), ("nothing", "i8"),  # 0, 1, 2, ... int64; a panel of zeros, float32
        ("threads", "i8"),  # of the team
        # what the step computes
        ("tokens", "i8"), ("positions", "i8"), ("kv_slots", "i8"),  # [T] int64; block * BLOCK + place
        ("cos", "i8"), ("sin", "i8"), ("reach", "i8"),  # [kinds of layers, reach, dim] float32, by position
        ("tiles", "i8"), ("tile_count", "i8"),  # of TILE
        ("blocks", "i8"), ("block_width", "i8"),  # [sequences, width] int32
        ("wanted", "i8"), ("wanted_count", "i8"),  # [L] int64: tokens whose logits are computed
        ("logits", "i8"), ("logits_width", "i8"),  # [L, width] float32
        ("mid", "i8"), ("last", "i8"),  # [T, width] float32: for the router; mid 0: not wanted
        # the stacks in use
        ("rounds", "i8"), ("units", "i8"), ("columns", "i8"), ("experts", "i8"),  # most of a round
        ("slots", "i8"), ("weights", "i8"),  # [rounds] int32; [T, rounds] float32, w * s
        ("round_table", "i8"), ("down_table", "i8"), ("up_table", "i8"),  # by slot; see `slot_of`
        # memory of the step
        ("h", "i8"),  # [T, width] float32, the residual stream
        ("x", "i8"), ("x_width", "i8"),  # [T, x_width] float32, a group's input
        ("q", "i8"), ("scale", "i8"), ("zero", "i8"), ("mass", "i8"),  # the same in int8; see `quantise`
        ("block_count", "i8"),  # most blocks of a row
        ("y", "i8"), ("y_width", "i8"),  # [T, y_width] float32, a group's output
        ("choices", "i8"), ("choice_width", "i8"),  # [rounds, T, choice_width] float32, logits of gates
        ("gates", "i8"),  # [3, rounds, T, experts] float32
        ("inner", "i8"), ("inner_width", "i8"),  # [3, rounds, T, inner_width] float32, of A
        ("low", "i8"), ("low_scale", "i8"), ("low_zero", "i8"),  # in int8, [3, rounds, T, columns or units]
        # bodies of the phases
        ("norm", "i8"), ("gate", "i8"), ("down", "i8"), ("products", "i8"), ("rotate", "i8"),
        ("attend", "i8"), ("joined", "i8"), ("activate", "i8"), ("after", "i8"), ("last_hidden", "i8"),
        ("final", "i8"), ("head", "i8"),
    ],
    align=True,
)  # fmt: skip

LAYER = np.dtype(
    [
        ("norms", "i8", (4,)),  # before and after attention, before and after the MLP: [hidden] float32
        ("q_norm", "i8"), ("k_norm", "i8"),  # [dim] float32
        ("keys", "i8"), ("values", "i8"),  # of this layer; see `engine.kv_cache.PagedCache`
        ("window", "i8"),  # tokens that it looks back, itself included; 0 for all
        ("angles", "i8"),  # index into cos and sin
        ("scale", "f8"),  # of the scores
    ],
    align=True,
)  # fmt: skip

GROUP = np.dtype(
    [
        ("linears", "i8"), ("first", "i8"),  # how many, and the first of them, in the table of linears
        ("d_in", "i8"), ("columns", "i8"),  # outputs together, each linear's filled up to whole panels
        ("block", "i8"),  # inputs that share a scale
        ("fast", "i8"), ("exact", "i8"),  # whether a linear multiplies int8, or needs sums of float32
        ("panels", "i8"), ("bias", "i8"),  # [columns] float32, zeros where there is none
    ],
    align=True,
)  # fmt: skip

LINEAR = np.dtype(
    [
        ("product", "i8"),  # address of a `products.PRODUCT`
        ("codes", "i8"), ("scales", "i8"), ("offsets", "i8"), ("levels", "i8"),  # see `panels.Panels`
        ("panels", "i8"), ("codes_step", "i8"), ("scales_step", "i8"),  # bytes from panel to panel
        ("blocks", "i8"), ("chunks", "i8"),  # of a row; of a block
        ("fast", "i8"), ("column", "i8"), ("d_in", "i8"), ("d_out", "i8"),
        ("projection", "i8"),  # column: of its first output
    ],
    align=True,
)  # fmt: skip

ROUND = np.dtype(
    [
        ("rank", "i8"), ("experts", "i8"), ("top_k", "i8"),
        ("units", "i8"), ("unit", "i8"),  # columns that are chosen together, filled up to fours
        ("panels", "i8"),  # of A, for a unit
        ("columns", "i8"), ("inner", "i8"),  # of h, filled up; of A as it is computed
        ("choices", "i8"),  # of its gates, where they are not computed with A
    ],
    align=True,
)  # fmt: skip
"""See `layers/delta_panels.py`."""

DOWN = np.dtype(
    [
        ("product", "i8"), ("fast", "i8"),  # address of a `products.PRODUCT`
        ("codes", "i8"), ("scales", "i8"),  # see `panels.Panels`
        ("codes_layer", "i8"), ("scales_layer", "i8"),  # bytes from layer to layer
        ("codes_step", "i8"), ("scales_step", "i8"),  # and from panel to panel
        ("panels", "i8"), ("blocks", "i8"), ("chunks", "i8"),  # of a layer; of a row; of a block
    ],
    align=True,
)  # fmt: skip
"""A of one projection of a round, or its gates: in all layers, so that few of these lie in the cache."""

UP = np.dtype(
    [
        ("product", "i8"), ("fast", "i8"),  # address of a `columns.COLUMNS`
        ("weights", "i8"), ("layer_step", "i8"), ("unit_step", "i8"), ("panel_step", "i8"),  # bytes
        ("scales", "i8"),  # bytes from a unit's first weight; 0 where there are none
    ],
    align=True,
)  # fmt: skip
"""B of one projection of a round, in all layers: see `columns.py`."""

GROUPS, PROJECTIONS = 4, 3
"""Of a layer; of a group, at most."""

GATES, LINEARS = PROJECTIONS, PROJECTIONS + 1
"""Of the linears of a round in a group: each projection's A, then all gates."""

TILE = np.dtype([("sequence", "i8"), ("first", "i8"), ("count", "i8"), ("position", "i8")], align=True)
"""Neighbouring packed tokens of one sequence: its row in `blocks`, the first of them, their number, and the
position of the first in the sequence."""


@internal
def step_at(address):
    return carray(as_pointer(address), (1,), STEP)[0]


@internal
def layer_at(step, index):
    return carray(as_pointer(step.layer_table), (index + 1,), LAYER)[index]


@internal
def group_at(step, index):
    return carray(as_pointer(step.group_table), (index + 1,), GROUP)[index]


@internal
def linear_at(step, index):
    return carray(as_pointer(step.linear_table), (index + 1,), LINEAR)[index]


@internal
def slot_of(step, g):
    """Where the bank keeps the g-th round that the step uses."""
    return carray(as_pointer(step.slots), (step.rounds,), np.int32)[g]


@internal
def round_at(step, g):
    return carray(as_pointer(step.round_table), (slot_of(step, g) + 1,), ROUND)[slot_of(step, g)]


@internal
def down_at(step, index, g, which):
    """A or gates of the g-th round in group `index`; its product is 0 where the stack has none."""
    at = (slot_of(step, g) * GROUPS + index % GROUPS) * LINEARS + which
    return carray(as_pointer(step.down_table), (at + 1,), DOWN)[at]


@internal
def up_at(step, index, g, projection):
    """B of the g-th round in group `index`; its product is 0 where the stack has none."""
    at = (slot_of(step, g) * GROUPS + index % GROUPS) * PROJECTIONS + projection
    return carray(as_pointer(step.up_table), (at + 1,), UP)[at]


@internal
def floats(address, rows, columns):
    """[rows, columns] float32 at `address`."""
    return carray(as_pointer(address), (rows, columns), np.float32)


@internal
def integers(address, count):
    """[count] int64 at `address`."""
    return carray(as_pointer(address), (count,), np.int64)
