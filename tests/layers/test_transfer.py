"""Copies to a GPU, in order with steps; the GPU is made up, and its memory is meta tensors."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brainstacks.device_map import Part
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.layers.transfer import CudaTransfer, Transfer
from tests.fake_cuda import FakeCuda
from tests.layers.composing import DIMS, config
from tests.tiny import random_stack

GPU = torch.device("meta")
ROW = [{"a": 1.0}]


class Copies(TorchDispatchMode):
    """Logs each copy, and on which stream."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].device == GPU:
            self._cuda.log.append(("copied", torch.cuda.current_stream().name, (args[2:] or (False,))[0]))  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


class PinnedMemory:
    """Page-locked memory that is not; `room` bytes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 1 << 40) -> None:
        self.room, self.made = room, 0
        self._empty = torch.empty
        monkeypatch.setattr(torch, "empty", self)

    def __call__(self, *args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        made = self._empty(*args, **kwargs)
        if pin_memory:
            if made.nbytes > self.room:
                raise RuntimeError("CUDA error: out of memory")
            self.made += 1
        return made


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def bank(cuda: FakeCuda) -> StackBank:
    made = StackBank(GPU, torch.float32)
    made._transfers = [CudaTransfer(torch.device("cuda", 1), 0)]
    return made


def packed(seed: int = 0) -> PackedStack:
    return PackedStack.pack(random_stack(DIMS, seed, config=config()), torch.float32)


def test_a_load_is_copied_on_its_own_stream_and_the_first_step_waits_for_it_on_the_device(
    cuda: FakeCuda, bank: StackBank
) -> None:
    prepared: list[str] = []
    bank.prepare_with(lambda stack: prepared.append(torch.cuda.current_stream().name))  # type: ignore[attr-defined]
    with Copies(cuda):
        bank.add("a", packed())
    assert prepared == ["copies"], "what a backend makes of it comes with it"
    assert cuda.log == [
        ("event", 0),
        ("copied", "copies", True),
        ("recorded", "copies", 0),
        ("host waits", 0),  # so that it is there when it is said to be
    ]
    cuda.log.clear()
    bank.slot_weights(ROW)
    assert cuda.log == [("waits", "steps", 0), ("keep for", "steps")]
    cuda.log.clear()
    bank.slot_weights(ROW)
    assert cuda.log == [], "once"


def test_the_memory_of_a_stack_that_left_is_kept_for_every_stream_that_had_read_it(
    cuda: FakeCuda, bank: StackBank
) -> None:
    bank.add("a", packed(0))
    bank.add("b", packed(1))
    bank.slot_weights([{"a": 1.0, "b": 0.0}])
    with torch.cuda.stream("another"):  # type: ignore[arg-type]
        bank.slot_weights(ROW)
    kept = [entry for entry in cuda.log if entry[0] == "keep for"]
    bank.remove("a")
    bank.remove("b")
    assert kept == [("keep for", "steps"), ("keep for", "another")], "before it left; of b nobody read"
    assert [entry for entry in cuda.log if entry[0] == "keep for"] == kept


def test_a_stack_that_was_placed_for_one_bank_is_ordered_in_another(cuda: FakeCuda, bank: StackBank) -> None:
    placed, other = bank.place(packed()), StackBank(GPU, torch.float32)
    cuda.log.clear()
    other.put("a", placed)
    other.slot_weights(ROW)
    assert cuda.log == [("waits", "steps", 0), ("keep for", "steps")]


def test_a_copy_that_fails_leaves_nothing_resident_and_the_steps_stream_in_force(
    cuda: FakeCuda, bank: StackBank
) -> None:
    cuda.lost = True
    with pytest.raises(torch.AcceleratorError):
        bank.add("a", packed())
    assert bank.keys == ()
    assert torch.cuda.current_stream().name == "steps"  # type: ignore[attr-defined]


def test_where_there_is_no_room_others_leave_and_it_is_tried_once_more(bank: StackBank) -> None:
    tries, full = 0, True

    def prepare(stack: PackedStack) -> None:
        nonlocal tries
        tries += 1
        if full:
            raise torch.OutOfMemoryError("no memory")

    def leave() -> bool:
        nonlocal full
        full = False
        return True

    bank.prepare_with(prepare)
    for others, tried in ((False, 1), (True, 2)):
        bank.make_room_with(lambda others=others: others)  # type: ignore[misc]
        tries = 0
        with pytest.raises(torch.OutOfMemoryError):
            bank.add("a", packed())
        assert tries == tried
        assert bank.keys == ()
    bank.make_room_with(leave)
    bank.add("a", packed())
    assert bank.keys == ("a",)


def test_the_parts_of_a_stack_are_copied_each_on_a_stream_of_its_own_and_waited_for_alike(
    cuda: FakeCuda,
) -> None:
    parts = [Part(GPU, range(1)), Part(GPU, range(1, 3))]
    bank = StackBank(GPU, torch.float32, parts=parts)
    bank._transfers = [CudaTransfer(torch.device("cuda", number), 0) for number in range(2)]
    of_three = PackedStack.pack(random_stack(DIMS, 0, config=config(layers=3)), torch.float32)
    with Copies(cuda):
        bank.add("a", of_three)
    assert [entry[0] for entry in cuda.log] == [
        "event", "event", "copied", "copied", "recorded", "host waits", "recorded", "host waits",
    ]  # fmt: skip
    assert bank.nbytes == of_three.nbytes
    sizes = [held.nbytes for held in bank.resident("a").stack._memory]
    assert 2 * sizes[0] == sizes[1]
    cuda.log.clear()
    bank.slot_weights(ROW)
    assert sorted(cuda.log) == [("keep for", "steps")] * 2 + [("waits", "steps", 0), ("waits", "steps", 1)]


def test_a_stack_in_parts_holds_what_one_in_one_piece_holds() -> None:
    packed = PackedStack.pack(random_stack(DIMS, 0, rounds=2, config=config(layers=3)), torch.float32)
    cpu = torch.device("cpu")
    one = packed.to([Part(cpu, range(3))], torch.float64)
    two = packed.to([Part(cpu, range(2)), Part(cpu, range(2, 3))], torch.float64)
    assert (len(one._memory), len(two._memory), one.nbytes) == (1, 2, two.nbytes)
    assert (one.down.keys(), one.up.keys()) == (two.down.keys(), two.up.keys())
    assert all(torch.equal(one.down[where], two.down[where]) for where in one.down)
    assert all(torch.equal(one.up[where], two.up[where]) for where in one.up)


# --- page-locked memory ---------------------------------------------------------------------------


def test_host_copies_are_page_locked_up_to_the_budget_and_ordinary_beyond(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = PinnedMemory(monkeypatch)
    transfer = CudaTransfer(torch.device("cuda", 0), page_locked=3 * 4096)
    first = transfer.host_memory(1000, torch.float32)  # which PyTorch rounds to 4096 bytes
    second = transfer.host_memory(1024, torch.float32)
    assert (first.shape, first.dtype, pinned.made) == ((1000,), torch.float32, 2)
    transfer.host_memory(1025, torch.float32)  # 8192
    assert pinned.made == 2
    third = transfer.host_memory(1, torch.float32)
    assert pinned.made == 3
    del first, third
    fourth = transfer.host_memory(2048, torch.float32)
    assert pinned.made == 4
    del second, fourth


def test_where_pages_cannot_be_locked_others_serve_and_the_log_says_so_once(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pinned = PinnedMemory(monkeypatch, room=0)
    transfer = CudaTransfer(torch.device("cuda", 0), page_locked=1 << 20)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert transfer.host_memory(8, torch.bfloat16).shape == (8,)
    assert pinned.made == 0
    assert [bool(re.search("no page-locked memory", record.message)) for record in caplog.records] == [True]


def test_a_bank_packs_in_the_memory_of_its_transfer(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = PinnedMemory(monkeypatch)
    bank = StackBank(torch.device("cuda", 1), torch.float32, page_locked=1 << 20)
    stack = random_stack(DIMS, 0, config=config())
    made = bank.pack(stack)
    assert pinned.made == 1
    assert torch.equal(made.down[0, 0], packed().down[0, 0])


def test_on_a_cpu_nothing_is_locked_copied_or_waited_for() -> None:
    assert type(Transfer.to(torch.device("cpu"), 1 << 30)) is Transfer
    bank = StackBank(torch.device("cpu"), torch.float32, page_locked=1 << 30)
    one = packed()
    assert bank.place(one) is one
    assert not bank.pack(random_stack(DIMS, 0, config=config()))._memory[0].is_pinned()
