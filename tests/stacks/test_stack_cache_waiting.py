"""Requests that wait for room: first come first served, no deadlock, nobody starved, nobody left to wait."""

from __future__ import annotations

import pytest

from brainstacks.errors import InvalidRequest
from brainstacks.stacks.stack_cache import MAX_OVERTAKEN
from tests.stacks.tiered_device import BIG, UNIT, A, B, C, D, Device


def test_leases_that_wait_for_room_are_served_first_come_first_served() -> None:
    device = Device(2)
    device.serve(A, B, C, BIG)
    holding = device.acquire(A)
    first, second, third = device.acquire(BIG), device.acquire(C), device.acquire(B)
    assert device.resident == {A.key}, "C and B would fit, and do not overtake"
    assert device.cache.stats(0).waiting == 3
    device.cache.release(holding)
    first.wait()
    assert not second.ready
    assert not third.ready
    device.cache.release(first)
    second.wait()
    third.wait()
    assert device.bank.loads == [A.key, BIG.key, C.key, B.key]


def test_two_that_each_need_what_the_other_has_do_not_wait_for_ever() -> None:
    device = Device(2)
    device.serve(A, B, C, D)
    first, second, third = device.acquire(A, B), device.acquire(B, C), device.acquire(C, A)
    for lease in (first, second, third):
        lease.wait()
        device.cache.release(lease)
    assert device.bank.most <= 2 * UNIT


def test_requests_for_what_is_there_do_not_starve_one_that_waits_for_room() -> None:
    device = Device(1)
    device.serve(A, B)
    chain = device.acquire(A)
    chain.wait()
    waiting = device.acquire(B)
    passed = 0
    while True:  # there is always a request for A, and each comes before the one before it ends
        following = device.acquire(A)
        device.cache.release(chain)
        chain = following
        if not following.ready:
            break
        passed += 1
    assert passed == MAX_OVERTAKEN
    waiting.wait()
    device.cache.release(waiting)
    chain.wait()
    device.cache.release(chain)
    assert device.acquire().ready, "a request of the base alone never waits"


def test_a_request_of_the_base_alone_never_waits() -> None:
    device = Device(1)
    device.serve(A, B)
    held, waiting = device.acquire(A), device.acquire(B)
    held.wait()
    assert all(device.acquire().ready for _ in range(MAX_OVERTAKEN + 2))
    assert device.acquire(A).ready, "nor does it count as passing"
    assert held.ready
    assert not waiting.ready


def test_a_composition_larger_than_the_device_is_refused_with_both_figures() -> None:
    device = Device(2)
    device.serve(A, B, C)
    with pytest.raises(
        InvalidRequest, match=rf"a, b, c take {3 * UNIT} bytes .* is {2 * UNIT}; .*routing.top"
    ):
        device.acquire(A, B, C)
    assert device.cache.stats(0).waiting == 0


def test_pins_count_and_a_lease_that_can_fit_no_more_is_told() -> None:
    device = Device(2)
    device.serve(A, B, C)
    held, waiting = device.acquire(C), device.acquire(A, B)
    device.serve(A, B, C, pinned=[C])
    with pytest.raises(InvalidRequest, match=f"beside {UNIT} bytes of pinned stacks"):
        waiting.wait()
    with pytest.raises(InvalidRequest, match="pinned"):
        device.acquire(A, B)
    device.cache.release(waiting)
    device.cache.release(held)
    device.acquire(A, C).wait()


def test_a_lease_tells_of_its_change_once_and_not_if_it_was_ready_at_once() -> None:
    device = Device(1)
    device.serve(A, B)
    told: list[str] = []
    first = device.cache.acquire(["a"], lambda: told.append("first"))
    first.wait()
    second = device.cache.acquire(["b"], lambda: told.append("second"))
    third = device.cache.acquire(["a"], lambda: told.append("third"))
    assert third.ready
    device.cache.wait_for_loads()
    assert told == ["first"]
    device.cache.release(first)
    device.cache.release(third)
    second.wait()
    device.cache.wait_for_loads()
    assert told == ["first", "second"]


def test_a_version_that_only_a_waiting_request_names_is_loaded_although_it_is_served_no_more() -> None:
    device = Device(1)
    device.serve(A, B)
    held, waiting = device.acquire(A), device.acquire(B)
    device.serve(A)
    device.cache.release(held)
    waiting.wait()
    assert device.resident == {B.key}
    device.cache.release(waiting)
    assert device.resident == set()


def test_requests_that_leave_while_they_wait_or_load_leave_nothing() -> None:
    device = Device(1)
    device.serve(A, B, C)
    device.bank.gate.clear()
    loading, waiting, last = device.acquire(A), device.acquire(B), device.acquire(C)
    device.cache.release(waiting)
    device.cache.release(loading)
    device.bank.gate.set()
    last.wait()
    assert device.resident == {C.key}
    assert B.key not in device.bank.loads
    assert device.bank.most == UNIT
