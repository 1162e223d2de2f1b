"""The cache grows without losing what it holds."""

from __future__ import annotations

import pytest
import torch

from brainstacks.engine.kv_cache import SlotCache


def cache() -> SlotCache:
    return SlotCache(layers=3, kv_heads=2, head_dim=4, device=torch.device("cpu"), dtype=torch.float32)


def fill(made: SlotCache, slot: int, tokens: int, value: float) -> None:
    for tensor in (*made.keys, *made.values):
        tensor[slot, :, :tokens] = value


def holds(made: SlotCache, slot: int, tokens: int, value: float) -> bool:
    return all(bool((t[slot, :, :tokens] == value).all()) for t in (*made.keys, *made.values))


@pytest.mark.parametrize(("slots", "tokens"), [(1, 300), (5, 10), (4, 2000)])
def test_growing_keeps_what_is_stored(slots: int, tokens: int) -> None:
    made = cache()
    fill(made, 0, 200, 7.0)
    made.reserve(slots, tokens)
    assert made.slots >= slots
    assert made.capacity >= tokens
    assert all(t.shape == (made.slots, 2, made.capacity, 4) for t in (*made.keys, *made.values))
    assert holds(made, 0, 200, 7.0)
    assert all(bool(torch.isfinite(t).all()) for t in (*made.keys, *made.values))


def test_room_that_is_there_is_not_allocated_again() -> None:
    made = cache()
    before = made.keys[0]
    made.reserve(1, made.capacity)
    assert made.keys[0] is before


def test_a_move_copies_a_slots_tokens() -> None:
    made = cache()
    made.reserve(3, 10)
    fill(made, 2, 10, 3.0)
    made.move(2, 0, 10)
    assert holds(made, 0, 10, 3.0)


def test_clear_gives_the_memory_back() -> None:
    made = cache()
    made.reserve(8, 5000)
    made.clear()
    assert made.slots == 1
    assert made.capacity == SlotCache.GROWTH


def test_an_allocation_that_ran_out_of_memory_half_way_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = cache()
    fill(made, 0, 100, 5.0)
    zeros, calls = torch.zeros, 0

    def failing(*args: int, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("no memory")
        return zeros(*args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "zeros", failing)
    with pytest.raises(torch.OutOfMemoryError):
        made.reserve(4, 600)
    made.reserve(2, 400)
    assert holds(made, 0, 100, 5.0)
    assert (made.slots, made.capacity) >= (2, 400)
