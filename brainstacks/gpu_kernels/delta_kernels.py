"""The kernels of `deltas.py`, and the layout of what they read."""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = 64
"""Of a stack, N * r, in one pair."""

RANK, EXPERTS, TOP_K = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
STRIDE, FIRST, COUNTS = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
PLACES, DOWN, UP = tl.constexpr(9), tl.constexpr(16), tl.constexpr(20)
RECORD = 32
"""int64 values of a pair: its slot's rank, experts and top-k; bytes from a layer's factors to the next one's;
the first of its columns; from `COUNTS` on, how many projections of each group carry deltas; from `PLACES` on,
each projection's place among them, -1 where it carries none; then the addresses in layer 0 of A and gates by
group (`DOWN`) and of B by projection (`UP`), in the layout of `PackedStack`."""

PAIRS, BLOCKS, SPLITS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Of `counts`: how many pairs and blocks there are; from `SPLITS` on, the pieces of each group's inputs."""


@triton.jit(do_not_specialize=["layer", "group", "first_projection"])
def down_kernel(
    x, records, tokens, pair_block, pair_weight, counts, hidden, chosen, layer, group, first_projection,
    D_IN: tl.constexpr, PROJECTIONS: tl.constexpr, TOKENS: tl.constexpr, GATES: tl.constexpr,
    WIDTH: tl.constexpr, GATE_INPUTS: tl.constexpr, INPUTS: tl.constexpr, STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """`chosen` [pairs, P, WIDTH] int32: whether a column is one of a kept expert; `hidden` [splits, pairs, P,
    TOKENS, WIDTH] float32."""
    pairs, splits = tl.load(counts + PAIRS), tl.load(counts + SPLITS + group)
    m, e, w = tl.arange(0, TOKENS), tl.arange(0, GATES), tl.arange(0, WIDTH)
    for item in range(tl.program_id(0), pairs * PROJECTIONS * splits, tl.num_programs(0)):
        split, at = item % splits, item // splits
        pair, projection = at // PROJECTIONS, at % PROJECTIONS
        record = records + pair * 32
        place = tl.load(record + PLACES + first_projection + projection)
        if place >= 0:
            rank, experts = tl.load(record + RANK).to(tl.int32), tl.load(record + EXPERTS).to(tl.int32)
            top_k, count = tl.load(record + TOP_K).to(tl.int32), tl.load(record + COUNTS + group)
            address = tl.load(record + DOWN + group) + layer * tl.load(record + STRIDE)
            A = tl.multiple_of(address.to(tl.pointer_type(x.dtype.element_ty)), 16)
            token = tl.load(tokens + tl.load(pair_block + pair) * TOKENS + m)
            weight = tl.load(pair_weight + pair * TOKENS + m)
            used = (weight != 0.0)[:, None]
            inputs = x + token.to(tl.int64)[:, None] * D_IN

            k = tl.arange(0, GATE_INPUTS)
            gate = A + (count * rank + place) * experts * D_IN
            logits = tl.zeros((TOKENS, GATES), tl.float32)
            for start in tl.range(0, D_IN, GATE_INPUTS, num_stages=STAGES):
                here = start + k < D_IN
                a = tl.load(inputs + (start + k)[None, :], used & here[None, :], 0.0)
                b = tl.load(
                    gate + e[None, :] * D_IN + (start + k)[:, None],
                    (e < experts)[None, :] & here[:, None],
                    0.0,
                )
                if UPCAST:
                    a, b = a.to(tl.float32), b.to(tl.float32)
                logits = tl.dot(a, b, logits, input_precision="ieee")
            logits = tl.where((e < experts)[None, :], logits, float("-inf"))
            rest, kept = logits, tl.zeros((TOKENS, GATES), tl.int32) > 0
            for _ in range(top_k):  # of equal logits the first
                best = tl.min(tl.where(rest == tl.max(rest, 1)[:, None], e[None, :], GATES), 1)
                kept = kept | (e[None, :] == best[:, None])
                rest = tl.where(kept, float("-inf"), rest)
            powers = tl.where(kept, tl.exp(logits - tl.max(logits, 1)[:, None]), 0.0)
            gates = powers / tl.sum(powers, 1)[:, None] * weight[:, None]

            column = tl.load(record + FIRST).to(tl.int32) + w
            scale = tl.zeros((TOKENS, WIDTH), tl.float32)
            for expert in range(experts):
                of_expert = tl.sum(tl.where((e == expert)[None, :], gates, 0.0), 1)
                scale = tl.where((column // rank == expert)[None, :], of_expert[:, None], scale)
            needed = tl.max((scale != 0.0).to(tl.int32), 0)
            tl.store(chosen + at * WIDTH + w, needed, split == 0)

            k = tl.arange(0, INPUTS)
            sums = tl.zeros((TOKENS, WIDTH), tl.float32)
            rows = A + (place * rank * experts + column)[None, :] * D_IN
            piece = tl.cdiv(tl.cdiv(D_IN, INPUTS), splits) * INPUTS
            for start in tl.range(
                split * piece, tl.minimum((split + 1) * piece, D_IN), INPUTS, num_stages=STAGES
            ):
                here = start + k < D_IN
                a = tl.load(inputs + (start + k)[None, :], used & here[None, :], 0.0)
                b = tl.load(rows + (start + k)[:, None], (needed > 0)[None, :] & here[:, None], 0.0)
                if UPCAST:
                    a, b = a.to(tl.float32), b.to(tl.float32)
                sums = tl.dot(a, b, sums, input_precision="ieee")
            to = hidden + (split * pairs * PROJECTIONS + at).to(tl.int64) * TOKENS * WIDTH
            tl.store(to + m[:, None] * WIDTH + w[None, :], sums * scale)


@triton.jit(do_not_specialize=["layer", "group", "first_projection"])
def up_kernel(
    out0, out1, out2, records, tokens, block_first, pair_weight, counts, hidden, chosen,
    layer, group, first_projection,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, PROJECTIONS: tl.constexpr,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, MOST: tl.constexpr,
    STAGES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    pairs, splits = tl.load(counts + PAIRS), tl.load(counts + SPLITS + group)
    tiles0, tiles1 = tl.cdiv(D0, OUTPUTS), tl.cdiv(D1, OUTPUTS)
    tiles = tiles0 + tiles1 + tl.cdiv(D2, OUTPUTS)
    m, w, s = tl.arange(0, TOKENS), tl.arange(0, WIDTH), tl.arange(0, MOST)
    for item in range(tl.program_id(0), tl.load(counts + BLOCKS) * tiles, tl.num_programs(0)):
        block, tile = item // tiles, item % tiles
        projection, d_out, out = 0, D0, out0
        if tile >= tiles0 + tiles1:
            projection, d_out, out = 2, D2, out2
            tile -= tiles0 + tiles1
        elif tile >= tiles0:
            projection, d_out, out = 1, D1, out1
            tile -= tiles0
        n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
        sums = tl.zeros((TOKENS, OUTPUTS), tl.float32)
        first, last = tl.load(block_first + block), tl.load(block_first + block + 1)
        for pair in tl.range(first, last, num_stages=STAGES):
            record = records + pair * 32
            carries = tl.load(record + PLACES + first_projection + projection) >= 0
            address = tl.load(record + UP + first_projection + projection) + layer * tl.load(record + STRIDE)
            B = tl.multiple_of(address.to(tl.pointer_type(out0.dtype.element_ty)), 16)
            column = tl.load(record + FIRST) + w
            at = pair * PROJECTIONS + projection
            used = tl.load(pair_weight + pair * TOKENS + m) != 0.0
            needed = tl.load(chosen + at * WIDTH + w, carries & (w >= 0), 0) > 0
            of = hidden + (s.to(tl.int64) * pairs * PROJECTIONS + at)[:, None, None] * TOKENS * WIDTH
            h = tl.load(
                of + (m[:, None] * WIDTH + w[None, :])[None, :, :],
                (carries & (s < splits))[:, None, None] & used[None, :, None],
                0.0,
            )
            b = tl.load(B + column[:, None] * d_out + n[None, :], needed[:, None] & (n < d_out)[None, :], 0.0)
            a = tl.sum(h, 0).to(b.dtype)
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            sums = tl.dot(a, b, sums, input_precision="ieee")
        token = tl.load(tokens + block * TOKENS + m)
        where = out + token.to(tl.int64)[:, None] * d_out + n[None, :]
        valid = (token >= 0)[:, None] & (n < d_out)[None, :]
        tl.store(where, tl.load(where, valid, 0.0).to(tl.float32) + sums, valid)
