"""The Triton kernels of deltas give what the maths says, for any mix of stacks, and read nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from brainstacks.config import PROJECTIONS
from brainstacks.gpu_kernels.deltas import DECODE, PREFILL, Tile
from brainstacks.layers.bank import StackBank
from brainstacks.layers.delta_plan import DeltaPlanner, pieces
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import INPUT_GROUPS
from brainstacks.layers.staged_deltas import InLine, StagedDeltas, room
from tests.tiny import plain_delta, random_stack, stack_config

pytestmark = pytest.mark.static_cuda

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DIMS = {
    "q_proj": (40, 40), "k_proj": (40, 20), "v_proj": (40, 20), "o_proj": (40, 40),
    "gate_proj": (40, 72), "up_proj": (40, 72), "down_proj": (72, 40),
}  # fmt: skip
LAYER = 1

Weights = Sequence[Mapping[Any, float]]


def stacks_of_every_shape() -> dict[str, StackTensors]:
    configs = {
        "one": stack_config(rank=2, experts=3, top_k=2),
        "rounds": stack_config(rank=16, experts=4, top_k=1),
        "wide": stack_config(rank=20, experts=4, top_k=4),  # more columns than a pair has
        "lora": stack_config(rank=5, experts=1, top_k=1, projections=("k_proj", "v_proj", "down_proj")),
        "crowd": stack_config(rank=1, experts=20, top_k=3),  # more experts than a gate's product is made for
    }
    return {
        name: random_stack(DIMS, seed, rounds=2 if name == "rounds" else 1, config=config)
        for seed, (name, config) in enumerate(configs.items())
    }


def bank_of(stacks: Mapping[str, StackTensors], dtype: torch.dtype) -> StackBank:
    bank = StackBank(DEVICE, dtype)
    for name, stack in stacks.items():
        bank.add(name, stack)
    return bank


def add_deltas(
    bank: StackBank,
    weights: Weights,
    tile: Tile,
    x: Tensor,
    group: int,
    outputs: Sequence[Tensor],
    shared: int,
) -> None:
    """The two launches of one group, over room that holds nothing but NaN."""
    plan = DeltaPlanner().plan(bank.slot_weights(weights), tile.tokens)
    cut = pieces([d for d, *_ in (DIMS[names[0]] for names in INPUT_GROUPS)], tile, shared)
    hidden, chosen = room(max(1, plan.pairs * 3 * tile.splits), tile.tokens, DEVICE)
    hidden.fill_(float("nan"))
    chosen.fill_(-7)

    def there(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(DEVICE)

    deltas = StagedDeltas(
        records=there(plan.records),
        tokens=there(plan.tokens),
        block_first=there(plan.block_first),
        pair_block=there(plan.pair_block),
        pair_weight=there(plan.pair_weight),
        counts=there(np.array([plan.pairs, plan.blocks, *cut], np.int32)),
        hidden=hidden,
        chosen=chosen,
        gates=plan.gates,
        beside=InLine(),
    )
    deltas.before(LAYER, group, x)
    deltas.add(LAYER, group, outputs)


def expected(
    stacks: Mapping[str, StackTensors], weights: Weights, x: Tensor, projection: str, output: Tensor
) -> Tensor:
    """Token by token, stack by stack, in float64."""
    total = output.cpu().double()
    for at, row in enumerate(weights):
        for name, weight in row.items():
            if weight and projection in stacks[name].config.projections:
                total[at] += weight * plain_delta(stacks[name], LAYER, projection, x[at].cpu().double())
    return total


def mixed(names: Sequence[str], tokens: int, seed: int) -> list[dict[str, float]]:
    random = np.random.default_rng(seed)
    return [{name: float(random.choice([0.0, 0.7, -1.3])) for name in names} for _ in range(tokens)]


def compositions() -> dict[str, tuple[list[str], Weights]]:
    """Rows that are identical, distinct, skewed, and none."""
    every = list(stacks_of_every_shape())
    return {
        "nothing": (every, [{}] * 3),
        "alike": (["one", "rounds"], [{"one": 0.5, "rounds": 1.0}] * 5),
        "one each": (every, [{every[at % len(every)]: 1.0} for at in range(9)]),
        "mixed": (every, mixed(every, 7, seed=1)),
        "more than a block": (["one", "lora"], mixed(["one", "lora"], 19, seed=2)),
    }


@pytest.mark.parametrize("group", range(4))
@pytest.mark.parametrize("case", compositions())
def test_decode_adds_what_the_maths_says(case: str, group: int) -> None:
    check(DECODE, *compositions()[case], group, torch.float32, tolerance=2e-5)


@pytest.mark.parametrize("group", range(4))
@pytest.mark.parametrize("case", ["one each", "mixed"])
def test_prefill_adds_what_the_maths_says(case: str, group: int) -> None:
    check(PREFILL, *compositions()[case], group, torch.float32, tolerance=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_lose_no_more_than_their_own_rounding(dtype: torch.dtype) -> None:
    names, weights = compositions()["mixed"]
    check(DECODE, names, weights[:3], 3, dtype, tolerance=2e-2)


def check(
    tile: Tile, names: Sequence[str], weights: Weights, group: int, dtype: torch.dtype, tolerance: float
) -> None:
    stacks = {name: stack for name, stack in stacks_of_every_shape().items() if name in names}
    rounded = {
        name: StackTensors(s.config, s.rounds, {key: t.to(dtype).float() for key, t in s.tensors.items()})
        for name, s in stacks.items()
    }
    random = torch.Generator().manual_seed(group)
    projections = INPUT_GROUPS[group]
    x = torch.randn(len(weights), DIMS[projections[0]][0], generator=random).to(DEVICE, dtype)
    outputs = [torch.randn(len(weights), DIMS[p][1], generator=random).to(DEVICE, dtype) for p in projections]
    want = [expected(rounded, weights, x, p, out) for p, out in zip(projections, outputs, strict=True)]
    add_deltas(bank_of(stacks, dtype), weights, tile, x, group, outputs, shared=4)
    for got, wanted in zip(outputs, want, strict=True):
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=tolerance, atol=tolerance)


def test_a_token_gets_the_same_bits_whoever_is_beside_it() -> None:
    stacks = {name: s for name, s in stacks_of_every_shape().items() if name in ("one", "wide", "lora")}
    bank = bank_of(stacks, torch.float32)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(6, 72, generator=random).to(DEVICE)
    output = torch.randn(6, 40, generator=random).to(DEVICE)
    weights: Weights = [
        {"one": 0.5, "lora": 1.0},
        {"wide": 1.0},
        {},
        {"one": -1.0},
        {"lora": 2.0},
        {"wide": 0.1},
    ]
    together = output.clone()
    add_deltas(bank, weights, DECODE, x, 3, [together], shared=1)
    for at in range(6):
        alone = output[at : at + 1].clone()
        add_deltas(bank, weights[at : at + 1], DECODE, x[at : at + 1], 3, [alone], shared=1)
        assert torch.equal(alone[0], together[at])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, who interprets
def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    stacks = {"one": stacks_of_every_shape()["one"]}
    x = torch.ones(2, 72, device=DEVICE)
    x[0, 3] = float("nan")
    output = torch.zeros(2, 40, device=DEVICE)
    add_deltas(bank_of(stacks, torch.float32), [{"one": 1.0}] * 2, DECODE, x, 3, [output], shared=2)
    assert output[0].isnan().all()
    assert output[1].isfinite().all()


def test_experts_that_no_token_chooses_are_not_read() -> None:
    """Their factors are NaN: whatever is read of them shows."""
    stack = random_stack(DIMS, 0, config=stack_config(rank=4, experts=3, top_k=1))
    poisoned = {key: tensor.clone() for key, tensor in stack.tensors.items()}
    gate = poisoned[f"rounds.0.layers.{LAYER}.down_proj.gate"]
    gate.zero_()
    gate[1] = 1.0  # with inputs of ones the second expert wins
    for key in (f"rounds.0.layers.{LAYER}.down_proj.A", f"rounds.0.layers.{LAYER}.down_proj.B"):
        rows = poisoned[key] if key.endswith("A") else poisoned[key].T
        rows[:4], rows[8:] = float("nan"), float("nan")
    output = torch.zeros(1, 40, device=DEVICE)
    bank = bank_of({"s": StackTensors(stack.config, 1, poisoned)}, torch.float32)
    add_deltas(bank, [{"s": 1.0}], DECODE, torch.ones(1, 72, device=DEVICE), 3, [output], shared=2)
    assert output.isfinite().all()
    assert output.abs().max() > 0


def test_records_cover_all_projections_once() -> None:
    bank = bank_of({"wide": stacks_of_every_shape()["wide"]}, torch.float32)
    plan = DeltaPlanner().plan(bank.slot_weights([{"wide": 1.0}]), 16)
    stack = bank.resident("wide").stack
    starts = [stack.up[0, name].data_ptr() for name in PROJECTIONS]
    assert plan.records[:, 20:27].tolist() == [starts, starts]
    assert plan.records[:, 4].tolist() == [0, 64]
