"""The compiled step finds the records of every resident round in its slot, whoever had the slot before."""

from __future__ import annotations

import gc

import numpy as np
import torch

from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.layers.slot_table import SlotTable
from tests.layers.composing import DIMS, config
from tests.tiny import random_stack

EXACT = [0, 0, 0, 0]


def packed(seed: int, rounds: int) -> PackedStack:
    return PackedStack.pack(random_stack(DIMS, seed, rounds=rounds, config=config()), torch.float32)


def seated(table: SlotTable, bank: StackBank) -> None:
    """Every resident stack's records are its panels'."""
    residents = [bank.resident(key) for key in bank.keys]
    table.seat(residents)
    for resident in residents:
        panels, slots = table.panels(resident.stack), list(resident.slots)
        for held, expected in zip(
            (table.rounds, table.down, table.up), (panels.rounds, panels.down, panels.up), strict=True
        ):
            np.testing.assert_array_equal(held[slots], expected)


def test_records_follow_stacks_that_come_and_go_and_come_back_to_other_slots() -> None:
    table, bank = SlotTable(EXACT), StackBank(torch.device("cpu"), torch.float32)
    kept = packed(0, 2)
    bank.put("a", kept)
    bank.put("b", packed(1, 1))
    seated(table, bank)
    bank.remove("a")
    bank.put("c", packed(2, 1))  # gets the first of a's slots
    seated(table, bank)
    bank.put("a", kept)
    assert bank.resident("a").slots == (1, 3)
    seated(table, bank)
    bank.remove("c")
    bank.remove("a")
    bank.put("a", kept)
    assert bank.resident("a").slots == (0, 1), "one slot holds what was the other round's"
    seated(table, bank)


def test_panels_are_made_once_and_go_with_their_stack() -> None:
    table, bank = SlotTable(EXACT), StackBank(torch.device("cpu"), torch.float32)
    bank.put("a", packed(0, 1))
    seated(table, bank)
    panels = table.panels(bank.resident("a").stack)
    assert table.panels(bank.resident("a").stack) is panels
    held = [panels]
    del panels
    assert len(table._panels) == 1
    held.clear()
    bank.remove("a")
    gc.collect()
    assert len(table._panels) == 0


def test_a_stack_of_another_bank_takes_slots_for_one_step_and_their_owners_get_them_back() -> None:
    table, bank = SlotTable(EXACT), StackBank(torch.device("cpu"), torch.float32)
    for seed, rounds in enumerate((1, 2, 1, 3)):
        bank.put(seed, packed(seed, rounds))
    for rounds in (1, 2, 5, 9):
        seated(table, bank)
        other = StackBank(torch.device("cpu"), torch.float32)
        other.put("other", packed(9, rounds))
        seated(table, other)
        seated(table, bank)
