"""Readers that do not read, and stacks that move, behind the asynchronous engine."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from pathlib import Path

import pytest
import torch

from brainstacks.engine.request import (
    CompositionRequest,
)
from brainstacks.errors import (
    Conflict,
    DomainNotFound,
    IncompatibleArtifact,
    InvalidRequest,
    VersionNotFound,
)
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.stacks import tensors
from tests.engine.async_driving import Running, begin, collect, expected, long, stream
from tests.engine.driving import fixed, prompt_of, request
from tests.tiny import random_stack, stack_config, write_router

ROUTED = CompositionRequest("routed")
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]


# --- readers that do not read, ids that are taken --------------------------------------------------


async def test_a_reader_that_stops_reading_pauses_its_own_request_and_nobody_elses(tmp_path: Path) -> None:
    running = Running(tmp_path, max_unread_events=8)
    step_engine, loop, step = running.served.engine, asyncio.get_running_loop(), running.step
    pause, resume, paused = step_engine.pause, step_engine.resume, asyncio.Event()
    resumed: list[str] = []

    def step_and_wait() -> None:
        """The event loop has seen all that a step made before the next one begins: it pauses in time."""
        step()
        seen = threading.Event()
        loop.call_soon_threadsafe(seen.set)
        assert seen.wait(300)

    def watched_pause(key: str) -> None:
        pause(key)
        loop.call_soon_threadsafe(paused.set)

    def watched_resume(key: str) -> None:
        resumed.append(key)
        resume(key)

    def produced() -> int:
        return len(step_engine._jobs["slow"].completions[0].output_ids)

    running.step = step_and_wait
    step_engine.pause = watched_pause  # type: ignore[method-assign]
    step_engine.resume = watched_resume  # type: ignore[method-assign]
    slow, other = long("slow", fixed(chat=1.0)), long("other", fixed(chat=1.0), seed=1)
    events = stream(running.engine, slow)
    ids = await begin(events)
    await paused.wait()
    count = produced()
    assert await collect(stream(running.engine, other)) == expected(running, other)
    assert produced() == count
    assert resumed == []
    ids += await collect(events)
    assert ids == expected(running, slow)
    assert resumed[0] == "slow"
    assert await running.idle()
    await running.engine.close()


async def test_a_request_that_nobody_reads_any_more_ends_when_it_is_closed(tmp_path: Path) -> None:
    running = Running(tmp_path, max_unread_events=1)
    events = stream(running.engine, long("r", fixed(chat=1.0)))
    await begin(events)
    await events.aclose()
    assert await running.idle()
    await running.engine.close()


async def test_an_id_that_is_in_use_is_refused_and_its_owner_goes_on(running: Running) -> None:
    engine, one = running.engine, long("r", fixed(chat=1.0))
    running.pause_at_first_token()
    events = stream(engine, one)
    ids = await begin(events)
    with pytest.raises(InvalidRequest, match="'r' is in use"):
        await anext(stream(engine, request("r", prompt_of(4))))
    with pytest.raises(InvalidRequest, match="'r' is in use"):
        await engine.route("r", prompt_of(4), ROUTED)
    drain = asyncio.create_task(engine.drain(timeout=300))
    await asyncio.sleep(0)
    assert not drain.done(), "the first one still counts"
    running.gate.set()
    assert ids + await collect(events) == expected(running, one)
    await drain


# --- publication ----------------------------------------------------------------------------------


def bytes_read() -> int:
    """By this process, so far, mapped memory left out."""
    return int(Path("/proc/self/io").read_text().split()[1])


async def test_a_file_is_read_once_between_its_publication_and_its_use(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = running.served
    stack = random_stack(served.base.identity.dims, 7, rounds=24, config=stack_config(rank=16))
    file = running.write("law", stack)

    def mapped(path: Path, **_: object) -> None:
        raise AssertionError(f"{path} is read once more")

    monkeypatch.setattr(tensors, "load_file", mapped)
    size, before = file.stat().st_size, bytes_read()
    published = await running.engine.stacks.publish("law", file)
    assert size <= bytes_read() - before < 1.1 * size
    assert running.engine.stacks.domain("law").residency == "device"
    bank = served.engine.stacks.bank
    there = bank.resident(("law", published.version)).stack
    assert torch.equal(there._memory[0], PackedStack.pack(stack, bank.dtype)._memory[0])
    assert served.registry.blob_path(published.digest, anew=True).read_bytes() == file.read_bytes()


async def test_a_router_is_rolled_back_unless_a_domain_of_it_was_deleted_and_files_come_back(
    running: Running, tmp_path: Path
) -> None:
    stacks, registry = running.engine.stacks, running.served.registry
    identity = running.served.base.identity
    files = [write_router(tmp_path / f"{seed}.safetensors", registry, identity, seed) for seed in (1, 2)]
    first, second = [await stacks.publish_router(file) for file in files]
    back = await stacks.activate_router(first.version)
    assert (back.digest, back.generation) == (first.digest, second.generation + 1)
    router = stacks.router()
    assert router is not None
    assert router.digest == first.digest
    for number, content in ((first.version, files[0]), (second.version, files[1])):
        version, file = await stacks.router_file(number)
        with file:
            assert file.read() == content.read_bytes()
    version, file = await stacks.file("math", 1)
    with file:
        assert hashlib.sha256(file.read()).hexdigest() == version.digest
    await stacks.delete("math", purge=True)
    with pytest.raises(DomainNotFound):
        await stacks.file("math", 1)
    with pytest.raises(IncompatibleArtifact, match="routes to math"):
        await stacks.activate_router(second.version)
    assert registry.snapshot().routers().active == first.version
    with pytest.raises(VersionNotFound):
        await stacks.activate_router(99)


# --- where stacks are -----------------------------------------------------------------------------


async def test_the_engines_thread_rests_while_there_is_nothing_but_a_load_to_wait_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, place = running.engine, StackBank.place
    loading, go_on, steps = threading.Event(), threading.Event(), 0

    def slow(bank: StackBank, stack: PackedStack) -> PackedStack:
        loading.set()
        assert go_on.wait(300)
        return place(bank, stack)

    def counted() -> None:
        nonlocal steps
        steps += 1
        step()

    await engine.stacks.evict("math")
    step = running.served.engine.step
    monkeypatch.setattr(running.served.engine, "step", counted)
    monkeypatch.setattr(StackBank, "place", slow)
    cold, warm = (
        request("cold", prompt_of(5), fixed(math=1.0)),
        request("warm", prompt_of(5), fixed(chat=1.0)),
    )
    waiting = asyncio.create_task(collect(stream(engine, cold)))
    assert await asyncio.to_thread(loading.wait, 300)
    await running.came_round()
    before = steps
    for _ in range(5):
        await running.came_round()
    assert steps == before
    assert await collect(stream(engine, warm)) == expected(running, warm, 8), "others are not held up"
    assert not waiting.done()
    go_on.set()
    assert await waiting == expected(running, cold, 8)
    assert await running.idle()


async def test_stacks_are_moved_on_request_and_answers_do_not_depend_on_where_they_were(
    running: Running,
) -> None:
    engine, one = running.engine, request("r", prompt_of(5), fixed(math=1.0))
    assert (await engine.stacks.load("math")).residency == "device"
    before = await collect(stream(engine, one))
    assert (await engine.stacks.evict("math")).residency == "host"
    assert await collect(stream(engine, one)) == before
    assert engine.stacks.domain("math").residency == "device"
    assert (await engine.stacks.pin("math")).pinned
    with pytest.raises(Conflict, match="pinned"):
        await engine.stacks.evict("math")
    assert not (await engine.stacks.unpin("math")).pinned
    for move in (engine.stacks.pin, engine.stacks.unpin, engine.stacks.evict, engine.stacks.load):
        with pytest.raises(DomainNotFound, match="poetry"):
            await move("poetry")
    stats = engine.status.cache()
    assert (stats.loads, stats.hits, stats.misses) == ({"host": 1, "disk": 3}, 3, 1)


async def test_a_stack_in_use_is_not_evicted(running: Running) -> None:
    running.pause_at_first_token()
    events = stream(running.engine, long("r", fixed(math=1.0)))
    await begin(events)
    with pytest.raises(Conflict, match="math version 1 is in use"):
        await running.engine.stacks.evict("math")
    running.gate.set()
    await collect(events)


async def test_the_version_that_is_shown_is_the_one_that_is_served(running: Running) -> None:
    engine, registry = running.engine, running.served.registry
    good = engine.stacks.domain("math").digest
    published = registry.publish(running.write("math", random_stack(running.served.base.identity.dims, 8)))
    path = registry.blob_path(published.digest)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    await engine.stacks.reload()
    status = engine.stacks.domain("math")
    assert (status.version, status.digest) == (1, good)
    assert [version["version"] for version in status.versions] == [1, 2]
    assert engine.status.readiness().ready
    assert "math version 2" in engine.status.readiness().problems[0]


async def test_with_room_for_two_of_three_stacks_everybody_gets_the_right_answer(tmp_path: Path) -> None:
    running = Running(tmp_path, device_stack_bytes=None)
    sizes = {name: r.nbytes for name, r in running.served.engine.stacks.serving.items()}
    await running.engine.close()
    budget = sizes["chat"] + sizes["math"]
    running = Running(tmp_path / "tight", device_stack_bytes=budget, host_stack_bytes=sizes["code"])
    pairs = [("chat", "code"), ("math",), ("code",), ("code", "math"), (), ("chat",)]
    requests = [
        request(f"r{i}", prompt_of(4 + i % 3), fixed(**dict.fromkeys(pairs[i % 6], 0.5 + i / 20)))
        for i in range(18)
    ]
    answers = await asyncio.gather(*(collect(stream(running.engine, one)) for one in requests))
    for one, ids in zip(requests, answers, strict=True):
        assert ids == expected(running, one, 8)
    assert await running.idle()
    stats = running.engine.status.cache()
    assert stats.bytes["device"] <= budget
    assert stats.bytes["host"] <= sizes["code"]
    assert stats.evictions["device"] > 0
    everything = fixed(chat=1.0, code=1.0, math=1.0)
    with pytest.raises(InvalidRequest, match="--device-stack-bytes"):
        await collect(stream(running.engine, request("all", prompt_of(4), everything)))
    assert await running.idle()
    await running.engine.close()
