"""Room on the device: budgets, who leaves first, loads that fail, and nothing left behind."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from brainstacks.errors import BrainstacksError, CorruptBlob, EngineFailure, InvalidRequest, Unavailable
from brainstacks.stacks.lease import Lease
from tests.stacks.tiered_device import BIG, UNIT, A, B, C, D, Device, version


def test_what_is_on_the_device_is_leased_at_once_and_the_rest_is_loaded_behind_the_callers_back() -> None:
    device = Device(2)
    device.serve(A, B)
    device.use(A)
    device.bank.gate.clear()
    both, hit = device.acquire(A, B), device.acquire(A)
    assert (hit.ready, both.ready) == (True, False)
    device.bank.gate.set()
    both.wait()
    assert both.ready
    assert {A.key, B.key} <= set(device.bank.keys)


def test_the_least_recently_used_leaves_first_and_use_is_counted_to_its_end() -> None:
    device = Device(3)
    device.serve(A, B, C, D)
    long = device.acquire(A)
    device.use(B)
    device.use(C)
    device.cache.release(long)  # so that A is the most recent
    device.use(D)
    assert device.resident == {A.key, C.key, D.key}
    device.use(A)
    device.use(B)
    assert device.resident == {A.key, B.key, D.key}


def test_a_stack_in_use_or_pinned_never_leaves() -> None:
    device = Device(3)
    device.serve(A, B, C, D, pinned=[A])
    device.use(A)
    held = device.acquire(B)
    for one in (C, D, C, D):
        device.use(one)
        assert {A.key, B.key} <= device.resident
    assert device.cache.evict(B.domain) is False
    device.cache.release(held)
    assert device.cache.evict(B.domain) is True
    assert B.key not in device.bank.keys


def test_what_leaves_the_device_stays_on_the_host_by_lru_there_too() -> None:
    device = Device(1, host=2)
    device.serve(A, B, C, D)
    for one in (A, B, C, D):
        device.use(one)
    assert [device.tier(one) for one in (A, B, C, D)] == ["disk", "host", "host", "device"]
    device.use(B)
    assert [device.tier(one) for one in (A, B, C, D)] == ["disk", "device", "host", "host"]
    stats = device.cache.stats(disk_bytes=7)
    assert stats.bytes == {"device": UNIT, "host": 2 * UNIT, "disk": 7}
    assert stats.budgets == {"device": UNIT, "host": 2 * UNIT}
    assert (stats.loads, stats.evictions) == ({"host": 1, "disk": 4}, {"device": 4, "host": 1})
    assert (stats.hits, stats.misses) == (0, 5)
    assert sum(stats.load_seconds) == 5
    assert stats.load_seconds_sum > 0


def test_a_stack_that_the_host_has_no_room_for_is_on_disk_alone_and_pushes_nothing_out() -> None:
    device = Device(2, host=1)
    device.serve(A, B, BIG)
    device.use(A)
    device.use(BIG)
    device.use(B)
    assert [device.tier(one) for one in (A, BIG, B)] == ["host", "disk", "device"]


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        (CorruptBlob("the bytes do not match"), CorruptBlob),
        (torch.OutOfMemoryError("no memory"), Unavailable),
        (RuntimeError("/a/path"), EngineFailure),
    ],
)
def test_a_load_that_fails_fails_every_lease_of_it_and_no_other(
    broken: Exception, seen: type[BrainstacksError]
) -> None:
    device = Device(3)
    device.serve(A, B, C)
    device.broken[B.key] = broken
    device.bank.gate.clear()
    told = threading.Event()
    one = device.cache.acquire(["a", "b"], told.set)
    two, other = device.acquire(B), device.acquire(C)
    device.bank.gate.set()
    other.wait()
    for lease in (one, two):
        with pytest.raises(seen) as caught:
            lease.wait()
        assert "/a/path" not in caught.value.message
        assert not lease.ready
        device.cache.release(lease)
    assert told.wait(300)
    assert device.resident == {A.key, C.key}
    assert list(device.cache.failures()) == [B.key]
    del device.broken[B.key]
    device.use(B)
    assert device.cache.failures() == {}


def test_what_is_neither_served_nor_used_goes_everywhere() -> None:
    device = Device(2, host=2)
    device.serve(A, B, C)
    for one in (A, B, C):
        device.use(one)
    held = device.acquire(C)
    assert device.tier(A) == "host"
    device.serve(B)
    assert device.resident == {B.key, C.key}
    assert device.cache.stats(0).bytes["host"] == 0
    device.cache.release(held)
    assert device.resident == {B.key}
    assert device.cache.stats(0).evictions["device"] == 1, "to be deleted is not to be evicted"


def test_without_a_limit_nothing_ever_leaves() -> None:
    device = Device(None)
    device.serve(A, B, C, BIG)
    for one in (A, B, C, BIG):
        device.use(one)
    assert device.resident == {A.key, B.key, C.key, BIG.key}
    assert "device" not in device.cache.stats(0).budgets


def test_a_prefetch_takes_free_room_alone() -> None:
    device = Device(2)
    device.serve(A, B, C)
    leases = device.cache.prefetch([A, B, C])
    for lease in leases:
        lease.wait()
        device.cache.release(lease)
    assert device.resident == {A.key, B.key}, "the first that fit, and nothing left for the third"


def test_no_count_is_lost_between_threads_and_what_is_shown_is_a_copy() -> None:
    device = Device(2)
    device.serve(A, B)
    device.use(A, B)
    before = device.cache.stats(0)

    def count() -> None:
        for _ in range(500):
            device.use(A, B)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (before.hits, before.misses) == (0, 2)
    assert (device.cache.stats(0).hits, device.cache.stats(0).misses) == (4000, 2)


@pytest.mark.parametrize("seed", range(12))
def test_under_random_traffic_no_budget_is_exceeded_no_lease_is_lost_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    room, host = chance.randint(3, 6), chance.randint(0, 4)
    device = Device(room, host)
    versions = {name: version(name, 1, chance.randint(1, 2)) for name in "abcdefgh"}
    pinned: set[str] = set()
    held: list[Lease] = []
    done = 0

    def serve() -> None:
        device.serve(*versions.values(), pinned=[versions[name] for name in sorted(pinned)])

    def check() -> None:
        assert device.bank.nbytes <= room * UNIT
        assert device.cache.stats(0).bytes["host"] <= host * UNIT
        for lease in held:
            assert not lease.ready or set(lease.keys) <= set(device.bank.keys)

    serve()
    for _ in range(250):
        action = chance.random()
        name = chance.choice(sorted(versions))
        if action < 0.45:
            names = chance.sample(sorted(versions), chance.randint(0, 3))
            try:
                held.append(device.acquire(*(versions[n] for n in names)))
            except InvalidRequest:
                beside = {n: versions[n] for n in {*names, *pinned}}
                assert sum(one.nbytes for one in beside.values()) > room * UNIT
        elif action < 0.8 and held:
            device.cache.release(held.pop(chance.randrange(len(held))))
            done += 1
        elif action < 0.88:
            versions[name] = version(name, versions[name].version + 1, versions[name].metadata.rounds)
            serve()
        elif action < 0.93:
            pinned = {name} if versions[name].nbytes <= UNIT and not pinned else set()
            serve()
        elif action < 0.97:
            device.cache.evict(name)
        else:
            device.cache.wait_for_loads()
        check()
    pinned.clear()
    serve()
    while held:
        device.cache.wait_for_loads()
        over = [lease for lease in held if lease.ready or lease.error is not None]
        assert over, "some can always go on; then the others can"
        check()
        for lease in over:
            held.remove(lease)
            device.cache.release(lease)
    assert done > 50
    assert device.bank.most <= room * UNIT
    assert device.resident <= {one.key for one in versions.values()}
    assert device.cache.stats(0).waiting == 0
    versions.clear()
    serve()
    assert device.resident == set()
    assert device.cache.stats(0).bytes == {"device": 0, "host": 0, "disk": 0}


# --- a device that has less room than it was believed to have -------------------------------------


def test_a_load_that_finds_no_room_makes_idle_stacks_leave_and_comes_then() -> None:
    device = Device(None)
    device.serve(A, B, C, D, pinned=[A])
    device.use(A)
    device.use(B)
    held = device.acquire(C)
    held.wait()
    device.bank.room = 3 * UNIT
    device.use(D)
    assert device.resident == {A.key, C.key, D.key}, "the pinned, the used, and what was asked for"
    assert device.cache.failures() == {}
    assert device.cache.stats(0).evictions["device"] == 1
    device.cache.release(held)
    device.use(B)
    assert device.resident == {A.key, B.key}


def test_where_nothing_is_idle_the_load_fails_alone_says_why_and_comes_when_it_can() -> None:
    device = Device(None)
    device.serve(A, B, C, pinned=[A])
    device.use(A)
    held = device.acquire(B)
    held.wait()
    device.bank.room = 2 * UNIT
    lost = device.acquire(C)
    with pytest.raises(Unavailable, match="the load of c version 1 found no room in the device's memory"):
        lost.wait()
    device.cache.release(lost)
    assert device.resident == {A.key, B.key}
    assert held.ready
    assert list(device.cache.failures()) == [C.key]
    device.cache.release(held)
    device.use(C)
    assert device.resident == {A.key, C.key}
    assert device.cache.failures() == {}
