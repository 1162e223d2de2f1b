"""What happens to tokens between products is what PyTorch and transformers compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba import njit

from brainstacks.kernels.activations import TOKENS_OF_PIECE, round_block
from brainstacks.kernels.layout import BLOCK
from brainstacks.kernels.tiles import PANEL
from brainstacks.kernels.vectors import ZERO_POINT
from tests.kernels.steps import Step, zeros
from tests.tiny import tiny_model

Array = np.ndarray[Any, Any]

TOKENS = 6
PIECES = -(-TOKENS // TOKENS_OF_PIECE)  # more than one piece, and the last one not full


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- int8 ----------------------------------------------------------------------------------------


def _round_block(x: Any, q: Any, start: Any, end: Any) -> Any:
    return round_block(x, q, start, end)


round_one = njit(_round_block)


def rounded(x: Array) -> tuple[Array, float, int]:
    """q of a whole block, its scale, and -ZERO_POINT * the sum of q."""
    q = np.full(len(x) + 2, 99, np.int8)
    scale, zero = round_one(np.concatenate([[7.0], x, [9.0]]).astype(np.float32), q, 1, 1 + len(x))
    assert q[0] == q[-1] == 99, "nothing beside the block is written"
    return q[1:-1], scale, zero


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("n", [16, 33, 64])
def test_a_block_is_rounded_to_the_nearest_of_127_steps_either_way(n: int, size: float) -> None:
    x = normal(n, seed=n) * np.float32(size)
    q, scale, zero = rounded(x)
    assert scale == pytest.approx(np.abs(x).max() / 127, rel=1e-6)
    assert np.abs(q.astype(int)).max() == 127
    assert (np.abs(q * np.float64(scale) - x) <= scale * 0.50001).all()
    assert zero == -ZERO_POINT * q.astype(int).sum()


def test_ties_go_to_the_even_step() -> None:
    q, scale, _ = rounded(np.array([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0], np.float32))
    assert scale == 1.0
    assert q.tolist() == [127, 0, 2, 2, 0, -2, -127]


def test_a_block_of_zeros_stays_zero() -> None:
    q, scale, zero = rounded(np.zeros(32, np.float32))
    assert not q.any()
    assert (scale, zero) == (0.0, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_makes_its_blocks_scale_nan(value: float) -> None:
    x = normal(32)
    x[5] = value
    q, scale, zero = rounded(x)
    assert np.isnan(scale)
    assert not q.any()
    assert zero == 0


# --- norms, and what products read ---------------------------------------------------------------


def norm_step(h: Array, weight: Array, block: int, *, fast: bool, exact: bool) -> Step:
    """One whose group 0 reads the norm of h [TOKENS, hidden], filled up to whole blocks."""
    hidden, filled = len(weight), -(-len(weight) // block) * block
    blocks = filled // block
    step = Step(
        tokens=TOKENS, hidden=hidden, width=h.shape[1], eps=1e-5, h=h,
        x=np.full((TOKENS, filled + 3), np.nan, np.float32), x_width=filled + 3,
        q=zeros(TOKENS, filled + 3, np.int8), scale=zeros(TOKENS, blocks + 1),
        zero=zeros(TOKENS, blocks + 1, np.int32), mass=zeros(TOKENS, blocks + 1), block_count=blocks + 1,
    )  # fmt: skip
    step.set(step.groups[:1], d_in=filled, block=block, fast=fast, exact=exact)
    step.layer["norms"][0, 0] = step.keep(weight)
    return step


@pytest.mark.parametrize(("hidden", "block"), [(48, 16), (36, 48), (128, 64)])
def test_a_norm_is_pytorchs_in_every_form_that_products_read(hidden: int, block: int) -> None:
    h, weight = 3.0 * normal(TOKENS, hidden + 4), normal(hidden, seed=1)
    step = norm_step(h, weight, block, fast=True, exact=True)
    step.run("norm", 0, PIECES)
    wanted = F.rms_norm(torch.from_numpy(h[:, :hidden]), (hidden,), torch.from_numpy(weight), 1e-5).numpy()
    x = step["x"]
    np.testing.assert_allclose(x[:, :hidden], wanted, rtol=1e-5, atol=1e-6)
    filled = x.shape[1] - 3
    assert not x[:, hidden:filled].any(), "what is filled up is zero"
    assert np.isnan(x[:, filled:]).all(), "nothing beyond is written"
    blocked = x[:, :filled].reshape(TOKENS, -1, block)
    np.testing.assert_allclose(step["mass"][:, :-1], blocked.sum(-1), rtol=1e-5, atol=1e-5)
    scale, q = step["scale"][:, :-1], step["q"][:, :filled].reshape(blocked.shape)
    np.testing.assert_allclose(scale, np.abs(blocked).max(-1) / 127, rtol=1e-6)
    assert (np.abs(q * scale[..., None] - blocked) <= scale[..., None] * 0.501).all()
    assert np.array_equal(step["zero"][:, :-1], -ZERO_POINT * q.astype(np.int32).sum(-1))


def test_what_no_product_reads_is_not_computed() -> None:
    step = norm_step(normal(TOKENS, 32), normal(32), 16, fast=False, exact=False)
    step.run("norm", 0, PIECES)
    for name in ("q", "scale", "zero", "mass"):
        assert not step[name].any(), name


def test_a_piece_takes_its_own_tokens_alone() -> None:
    step = norm_step(normal(TOKENS, 32), normal(32), 16, fast=True, exact=True)
    step.run("norm", 0, 1)
    assert np.isnan(step["x"][TOKENS_OF_PIECE:]).all()
    assert not np.isnan(step["x"][:TOKENS_OF_PIECE, :32]).any()


# --- the MLP's activation ------------------------------------------------------------------------


@pytest.mark.parametrize("gelu", [0, 1])
def test_the_mlps_activation_is_pytorchs(gelu: int) -> None:
    d_ff, other = 20, 32
    y = 4.0 * normal(TOKENS, 64)
    y[0, :6] = [0.0, -0.0, 100.0, -100.0, 1e30, -1e30]
    y[0, other : other + 6] = 1.0
    step = Step(tokens=TOKENS, gelu=gelu, y=y, y_width=64, x=zeros(TOKENS, 32), x_width=32)
    step.set(step.linears[:1], d_out=d_ff)
    step.set(step.linears[1:2], column=other)
    step.set(step.groups[3:4], d_in=32, block=32)
    step.run("activate", 3, PIECES)
    gate = torch.from_numpy(y[:, :d_ff]).double()
    activated = F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)
    wanted = (activated * torch.from_numpy(y[:, other : other + d_ff])).numpy()
    np.testing.assert_allclose(step["x"][:, :d_ff], wanted, rtol=2e-6, atol=1e-6)
    assert not step["x"][:, d_ff:].any()


# --- rotary embedding, and the cache -------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dim", [8, 16, 20])
def test_q_and_k_are_turned_as_by_transformers_and_keys_and_values_are_stored(
    family: str, wide: bool, dim: int
) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = tiny_model(family, head_dim=dim)
    heads, kv_heads, positions = 4, 2, [5, 6, 0, 1, 2, 30]
    slots = [21, 22, 64, 65, 66, 15]  # of blocks 1, 4 and 0
    depth = -(-dim // PANEL) * PANEL
    columns = heads * dim, heads * dim + 16, heads * dim + 16 + kv_heads * dim + 16
    width = columns[-1] + kv_heads * dim
    y = normal(TOKENS, width)
    given = y.copy()
    q, k, v = (
        torch.from_numpy(given[:, at : at + n * dim]).reshape(TOKENS, n, dim).transpose(0, 1)[None]
        for at, n in zip((0, *columns[1:]), (heads, kv_heads, kv_heads), strict=True)
    )
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(40)[None])
    attention = model.model.layers[0].self_attn
    stored = np.float32 if wide else np.uint16
    keys, values = (np.full((6, kv_heads, depth * BLOCK), 1 if wide else 0x3F80, stored) for _ in range(2))
    step = Step(
        wide=wide, tokens=TOKENS, heads=heads, kv_heads=kv_heads, dim=dim, depth=depth, eps=1e-6,
        y=y, y_width=width, kv_slots=np.array(slots), positions=np.array(positions),
        cos=cos[0].numpy(), sin=sin[0].numpy(), reach=40,
    )  # fmt: skip
    step.set(step.layer, keys=keys, values=values)
    step.set(step.linears[1:2], column=columns[1])
    step.set(step.linears[2:3], column=columns[2])
    if family == "qwen3":
        step.set(step.layer, q_norm=attention.q_norm.weight.numpy(), k_norm=attention.k_norm.weight.numpy())
        q, k = attention.q_norm(q), attention.k_norm(k)
    step.run("rotate", 0, PIECES)

    turned_q, turned_k = apply_rotary_pos_emb(q, k, cos[:, positions], sin[:, positions])
    found = y[:, : heads * dim].reshape(TOKENS, heads, dim)
    np.testing.assert_allclose(found, turned_q[0].transpose(0, 1).numpy(), rtol=1e-5, atol=1e-5)

    def floats(held: Array) -> Array:
        return held if wide else (held.astype(np.uint32) << 16).view(np.float32)

    kept_keys = floats(keys).reshape(6, kv_heads, depth, BLOCK)
    kept_values = floats(values).reshape(6, kv_heads, depth // PANEL, BLOCK, PANEL).swapaxes(2, 3)
    kept_values = kept_values.reshape(6, kv_heads, BLOCK, depth)
    written = np.zeros((6, BLOCK), bool)
    tolerance = 1e-5 if wide else 2**-8
    for t, slot in enumerate(slots):
        block, place = slot // BLOCK, slot % BLOCK
        written[block, place] = True
        for held, wanted in ((kept_keys[..., place], turned_k), (kept_values[:, :, place], v)):
            np.testing.assert_allclose(held[block, :, :dim], wanted[0, :, t], rtol=tolerance, atol=1e-5)
            assert not held[block, :, dim:].any(), "what is filled up is zero"
    assert (kept_keys.transpose(0, 3, 1, 2)[~written] == 1.0).all(), "nothing else is written"
    # Attention multiplies what lies behind a block's last value by zero: it must be a number.
    for block, last in ((1, 6), (4, 2), (0, 15)):
        assert not kept_values[block, :, last + 1 :].any()
        before = ~written[block]
        before[last:] = False
        assert (kept_values[block, :, before] == 1.0).all()
    for block in (2, 3, 5):
        assert (kept_values[block] == 1.0).all()
