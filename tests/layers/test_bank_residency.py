"""Stacks come to a bank and leave it: in any order, beside batches that are bound, with all their bytes."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack
from tests.layers.composing import DIMS, assert_equal, assert_same, config, fused, inputs, plain
from tests.tiny import bank_of, random_stack


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "b", "c"])))
@pytest.mark.parametrize("gone", ["a", "b", "c"])
def test_any_order_of_add_and_remove_gives_the_bits_of_a_fresh_bank(
    order: tuple[str, ...], gone: str
) -> None:
    shapes = {"a": config(), "b": config(rank=1), "c": config()}
    stacks = {k: random_stack(DIMS, i, rounds=3 - i, config=shapes[k]) for i, k in enumerate(shapes)}
    bank = bank_of({k: stacks[k] for k in order})
    bank.remove(gone)
    left = {k: s for k, s in stacks.items() if k != gone}
    weights = [dict.fromkeys(left, 0.8)]
    x = inputs(1)
    assert_equal(fused(bank, weights, x), fused(bank_of(left), weights, x))
    assert set(bank.keys) == set(left)
    assert bank.nbytes == bank_of(left).nbytes
    bank.add(gone, stacks[gone])
    weights = [{"a": 1.0, "b": 0.5, "c": -0.5}]
    assert_same(fused(bank, weights, x), plain(stacks, weights, x))


@pytest.mark.parametrize("apart", [False, True])
def test_adding_and_removing_others_does_not_change_what_a_bound_batch_computes(apart: bool) -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=2, config=config()) for i in range(4)}
    bank = StackBank(torch.device("cpu"), torch.float32)
    for key in ("d0", "d1", "d2"):
        bank.add(key, stacks[key])
    x = inputs(1)
    weights = [{"d0": 1.0, "d2": 1.0}] * (5 if apart else 1)
    bound = bank.bind(weights, apart=apart)

    def delta() -> Tensor:
        output = torch.zeros(1, 5, DIMS["q_proj"][1])
        for correction in bound.corrections(0, 0, x[0])["q_proj"]:
            output = correction(output)
        return output

    before = delta()
    assert before.any()
    bank.remove("d1")
    assert torch.equal(delta(), before)
    bank.add("d3", stacks["d3"])
    assert torch.equal(delta(), before)
    bank.add("d4", random_stack(DIMS, 4, rounds=3, config=config(rank=1)))
    assert torch.equal(delta(), before)
    bank.remove("d3")
    bank.remove("d4")
    assert torch.equal(delta(), before)
    bank.remove("d0")
    assert torch.equal(delta(), before), "a bound batch keeps what it uses"


def test_batches_are_bound_and_computed_while_another_thread_adds_and_removes_others() -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=2, config=config(rank=1 + i // 2)) for i in range(4)}
    bank = bank_of({key: stacks[key] for key in ("d0", "d2")})
    weights, x = [{"d0": 1.0, "d2": -0.5}] * 5, inputs(1)
    expected = fused(bank, weights, x, apart=True)

    def come_and_go() -> None:
        for _ in range(100):
            for key in ("d1", "d3"):
                bank.add(key, stacks[key])
            for key in ("d1", "d3"):
                bank.remove(key)

    with ThreadPoolExecutor(1) as other:
        changes = other.submit(come_and_go)
        computed = 0
        while not changes.done():
            assert_equal(fused(bank, weights, x, apart=True), expected)
            computed += 1
        changes.result()
    assert computed > 0
    assert bank.keys == ("d0", "d2")


def test_a_stack_takes_its_own_bytes_and_gives_them_back() -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=2, config=config()) for i in range(4)}
    one = bank_of({"d0": stacks["d0"]}).nbytes
    assert one == PackedStack.pack(stacks["d0"], torch.float32).nbytes
    bank = bank_of({key: stacks[key] for key in ("d0", "d1")})
    assert bank.nbytes == 2 * one
    bank.remove("d0")
    assert bank.nbytes == one
    bank.add("d2", stacks["d2"])
    assert bank.nbytes == 2 * one
    bank.remove("d1")
    bank.remove("d2")
    assert bank.nbytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_removed_from_a_bank_and_put_back_is_the_same_stack(dtype: torch.dtype) -> None:
    stacks = {"a": random_stack(DIMS, 0, rounds=2, config=config()), "b": random_stack(DIMS, 1)}
    bank = bank_of(stacks, dtype)
    weights = [{"a": 0.5, "b": 0.5}]
    x = inputs(1, dtype=dtype)
    before = fused(bank, weights, x)
    packed = bank.resident("a").stack
    bank.remove("a")
    assert bank.keys == ("b",)
    bank.add("a", packed)
    assert_equal(fused(bank, weights, x), before)
    with pytest.raises(KeyError, match="not resident"):
        bank.remove("c")


def test_a_stack_packed_beforehand_is_the_same_stack() -> None:
    stack = random_stack(DIMS, 0, rounds=2, config=config())
    bank = StackBank(torch.device("cpu"), torch.bfloat16)
    bank.add("d", PackedStack.pack(stack, torch.bfloat16))
    x = inputs(1, dtype=torch.bfloat16)
    weights = [{"d": 1.0}]
    assert_equal(fused(bank, weights, x), fused(bank_of({"d": stack}, torch.bfloat16), weights, x))
    assert fused(bank, weights, x)["q_proj"].any()


def test_a_key_is_added_once_and_removed_once() -> None:
    stack = random_stack(DIMS, 0, config=config())
    bank = bank_of({"d0": stack})
    with pytest.raises(KeyError, match="resident already"):
        bank.add("d0", stack)
    with pytest.raises(KeyError, match="not resident"):
        bank.remove("d1")
    bank.remove("d0")
    assert bank.keys == ()
    with pytest.raises(KeyError, match="not resident"):
        bank.bind([{"d0": 1.0}])


def test_every_round_has_a_slot_of_its_own_and_slots_that_are_free_go_first() -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=1 + i, config=config()) for i in range(3)}
    bank = bank_of(stacks)
    assert [bank.resident(key).slots for key in stacks] == [(0,), (1, 2), (3, 4, 5)]
    bank.remove("d1")
    bank.add("d3", random_stack(DIMS, 3, rounds=3, config=config()))
    assert bank.resident("d3").slots == (1, 2, 6)
    bank.add("d1", stacks["d1"])
    assert bank.resident("d1").slots == (7, 8)
