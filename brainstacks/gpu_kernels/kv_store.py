"""New keys and values to their places in the paged cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from brainstacks.gpu_kernels.configuration import TYPES, Configuration
from brainstacks.gpu_kernels.launch import operator

WARPS = 4
ROWS = 16
"""Heads of tokens that a program stores."""


@triton.jit(do_not_specialize=("tokens",))
def store_kernel(
    key,
    value,
    blocks,
    offsets,
    keys,
    values,
    tokens,
    key_token,
    key_head,
    value_token,
    value_head,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = (row // KV_HEADS).to(tl.int64)
    head = row % KV_HEADS
    lane = tl.arange(0, DIMS)[None, :]
    known = token < tokens
    block = tl.load(blocks + token, mask=known, other=0).to(tl.int64)
    place = tl.load(offsets + token, mask=known, other=0)
    at = (((block * KV_HEADS + head) * BLOCK + place) * HEAD_DIM)[:, None] + lane
    real = known[:, None] & (lane < HEAD_DIM)
    k = tl.load(key + (token * key_token + head * key_head)[:, None] + lane, mask=real)
    tl.store(keys + at, k, mask=real)
    v = tl.load(value + (token * value_token + head * value_head)[:, None] + lane, mask=real)
    tl.store(values + at, v, mask=real)


def store(key: Tensor, value: Tensor, blocks: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
    """keys[blocks[t], h, offsets[t]] = key[t, h], and values likewise, in one launch.

    Args:
        key, value: [T, kv_heads, head_dim], of any strides but 1 for the last.
        blocks, offsets: [T] int32 or int64, the block of each token and its place there. Of tokens that have
            the same, which are padding, any is stored.
        keys, values: [blocks, kv_heads, block_tokens, head_dim], of one layer; contiguous.

    Raises:
        ValueError: the dimensions of a head do not lie side by side.
    """
    for name, given in (("key", key), ("value", value)):
        if given.stride(-1) != 1:
            raise ValueError(
                f"dimensions of a {name} are {given.stride(-1)} apart; they must lie side by side"
            )
    _operator(key, value, blocks, offsets, keys, values)


def _store(key: Tensor, value: Tensor, blocks: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
    kv_heads, block, head_dim = keys.shape[1:]
    store_kernel[(triton.cdiv(len(key) * kv_heads, ROWS),)](
        key, value, blocks, offsets, keys, values, len(key), *key.stride()[:2], *value.stride()[:2],
        **_constants(kv_heads, block, head_dim), num_warps=WARPS,
    )  # fmt: skip


_operator = operator(
    "store_kv(Tensor key, Tensor value, Tensor blocks, Tensor offsets, Tensor(a!) keys, "
    "Tensor(b!) values) -> ()",
    _store,
)


def _constants(kv_heads: int, block: int, head_dim: int) -> dict[str, int]:
    return {
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK": block,
        "ROWS": ROWS,
        "DIMS": triton.next_power_of_2(head_dim),
    }


def configuration(dtype: torch.dtype, kv_heads: int, head_dim: int, block: int) -> Configuration:
    """As `store` launches it for int64 blocks."""
    pointers = dict.fromkeys(("key", "value", "keys", "values"), f"*{TYPES[dtype]}")
    strides = dict.fromkeys(("key_token", "key_head", "value_token", "value_head"), "i32")
    strides["tokens"] = "i32"
    return Configuration(
        f"store, {TYPES[dtype]}, head_dim {head_dim}",
        store_kernel,
        pointers | dict.fromkeys(("blocks", "offsets"), "*i64") | strides,
        _constants(kv_heads, block, head_dim),
        WARPS,
        stages=3,
        unaligned=("tokens",),
    )
