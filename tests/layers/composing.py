"""A bank's deltas of one layer, and the same by the plain loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from brainstacks.config import PROJECTIONS, StackConfig
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import INPUT_GROUPS
from tests.tiny import plain_delta

DIMS = {
    "q_proj": (6, 8),
    "k_proj": (6, 4),
    "v_proj": (6, 4),
    "o_proj": (8, 6),
    "gate_proj": (6, 10),
    "up_proj": (6, 10),
    "down_proj": (10, 6),
}

Stacks = Mapping[Any, StackTensors]
Weights = Sequence[Mapping[Any, float]]


def config(**changes: object) -> StackConfig:
    return StackConfig(**{"rank": 2, "alpha": 3.0, "experts": 3, "top_k": 2, "layers": 1, **changes})  # type: ignore[arg-type]


def inputs(rows: int, tokens: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[rows, tokens, d_in] for each input group."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, tokens, DIMS[g[0]][0], generator=random).to(dtype) for g in INPUT_GROUPS]


def outputs(x: list[Tensor], seed: int = 1) -> dict[str, Tensor]:
    """projection -> what the base put out before any delta, [..., d_out]."""
    random = torch.Generator().manual_seed(seed)
    shapes = {p: (*x[g].shape[:-1], DIMS[p][1]) for g, names in enumerate(INPUT_GROUPS) for p in names}
    return {p: torch.randn(shape, generator=random).to(x[0].dtype) for p, shape in shapes.items()}


def fused(
    bank: StackBank,
    weights: Weights,
    x: list[Tensor],
    *,
    apart: bool = False,
    onto: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """projection -> the whole batch's delta of layer 0, added to `onto` where there is one."""
    bound = bank.bind(weights, apart=apart)
    out = {}
    for group, names in enumerate(INPUT_GROUPS):
        corrections = bound.corrections(0, group, x[group])
        for name in names:
            total = x[group].new_zeros(*x[group].shape[:-1], DIMS[name][1])
            if onto is not None:
                total += onto[name]
            for correction in corrections.get(name, ()):
                total = correction(total)
            out[name] = total
    return out


def fused_tokens(
    bank: StackBank,
    weights: Weights,
    x: list[Tensor],
    *,
    apart: bool = True,
    onto: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """`fused` of one packed row whose tokens are the rows of `x` [T, 1, d_in], each with its own weights."""
    found = fused(
        bank,
        weights,
        [t.transpose(0, 1).contiguous() for t in x],
        apart=apart,
        onto=None if onto is None else {name: t.transpose(0, 1) for name, t in onto.items()},
    )
    return {name: t.transpose(0, 1) for name, t in found.items()}


def plain(stacks: Stacks, weights: Weights, x: list[Tensor]) -> dict[str, Tensor]:
    """The same, stack by stack, round by round, expert by expert."""
    out = {}
    for group, names in enumerate(INPUT_GROUPS):
        for name in names:
            total = x[group].new_zeros(*x[group].shape[:-1], DIMS[name][1])
            for key, stack in stacks.items():
                if name in stack.config.projections:
                    of_rows = torch.tensor([row.get(key, 0.0) for row in weights], dtype=total.dtype)
                    total += of_rows[:, None, None] * plain_delta(stack, 0, name, x[group])
            out[name] = total
    return out


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    for name in PROJECTIONS:
        scale = max(1.0, float(right[name].abs().max()))
        assert float((left[name] - right[name]).abs().max()) <= tolerance * scale, name


def assert_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    for name in PROJECTIONS:
        assert torch.equal(left[name], right[name]), name


def rounded(stacks: Stacks) -> dict[Any, StackTensors]:
    """`stacks` as a bfloat16 bank holds them, in float32."""
    return {
        key: StackTensors(s.config, s.rounds, {n: t.bfloat16().float() for n, t in s.tensors.items()})
        for key, s in stacks.items()
    }
