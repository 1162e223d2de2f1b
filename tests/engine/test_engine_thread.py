"""The engine's thread as others see it: whether it comes round, and its end."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.engine import async_engine, engine_thread
from brainstacks.engine.request import CompositionRequest
from brainstacks.errors import EngineFailure, Unavailable
from tests.engine.async_driving import Running, begin, collect, long, stream
from tests.engine.driving import fixed, prompt_of, request
from tests.tiny import random_stack

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]


async def test_health_follows_the_engines_thread(tmp_path: Path) -> None:
    running = Running(tmp_path)
    assert running.engine.status.silence() == 0
    assert running.engine.status.readiness().ready
    await running.engine.close()
    assert running.engine.status.silence() == math.inf
    assert not running.engine.status.readiness().ready


async def test_silence_is_the_age_of_one_step_and_never_waits_for_it(running: Running) -> None:
    """However many commands are queued behind the step."""
    running.gate.clear()
    rest = asyncio.create_task(collect(stream(running.engine, request("r", prompt_of(4)))))
    while not running.engine.status.silence():
        await asyncio.sleep(0)
    before = running.engine.status.silence()
    for _ in range(100):
        running.engine._thread.put(lambda: None)
    assert running.engine.status.silence() > before
    running.gate.set()
    await rest
    await running.came_round()
    while running.engine.status.silence():  # it has nothing to do any more
        await asyncio.sleep(0)


async def test_hostile_34_a_reader_that_has_stopped_does_not_hold_up_a_drain(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_engine, "LAST_WORDS", 0.01)
    events = stream(running.engine, long("r", CompositionRequest("base")))
    await begin(events)
    await asyncio.wait_for(running.engine.drain(0.01), 60)
    assert await running.idle(), "its memory is free, though its client has not read"
    with pytest.raises(Unavailable):
        await collect(events)


class Device:
    """The backend's steps, of which the first so many fail."""

    def __init__(
        self,
        running: Running,
        failures: float,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception | None = None,
    ) -> None:
        backend = running.served.engine.backend
        self.left, self.run, self.calls = failures, backend.run, 0
        self.error = error or RuntimeError("an illegal memory access was encountered")
        monkeypatch.setattr(backend, "run", self)
        monkeypatch.setattr(engine_thread, "SELF_CHECKS", (0.0, 0.0, 0.0))

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        self.calls += 1
        if self.left >= 0:
            raise self.error
        return self.run(*args)


async def test_a_device_error_that_persists_ends_the_engine_and_everything_says_so(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device(running, math.inf, monkeypatch)
    engine, status = running.engine, running.engine.status
    hold = running.hold()
    hurt = asyncio.create_task(collect(stream(engine, request("hurt", prompt_of(4), fixed(chat=1.0)))))
    hold.set()
    with pytest.raises(EngineFailure) as told:
        await hurt
    assert "illegal" not in told.value.message
    await asyncio.wait_for(engine.ended(), 60)
    assert status.problem() == "the device does not compute (RuntimeError)"
    assert status.readiness().problems[0] == "the engine thread has stopped"
    assert not status.readiness().ready
    with pytest.raises(Unavailable):
        await collect(stream(engine, request("late", prompt_of(4))))


@pytest.mark.parametrize("failures", [1, 3])
async def test_a_device_that_computes_again_goes_on_and_so_does_a_step_that_failed_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    one = request("again", prompt_of(4), fixed(chat=1.0))
    before = await collect(stream(running.engine, one))
    Device(running, failures, monkeypatch)
    with pytest.raises(EngineFailure):
        await collect(stream(running.engine, request("hurt", prompt_of(5), fixed(chat=1.0))))
    assert await collect(stream(running.engine, one)) == before
    assert running.engine.status.problem() is None
    assert running.engine.status.readiness().ready


async def test_a_device_that_is_lost_is_not_tried_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(running, math.inf, monkeypatch)
    monkeypatch.setattr(engine_thread, "SELF_CHECKS", (0.0, math.inf))
    monkeypatch.setattr(engine_thread, "is_lost", lambda device: True)
    with pytest.raises(EngineFailure):
        await collect(stream(running.engine, request("hurt", prompt_of(4), fixed(chat=1.0))))
    await asyncio.wait_for(running.engine.ended(), 60)
    assert running.engine.status.problem() == "cpu is lost to this process (RuntimeError)"
    assert device.calls == 2, "the step, and one check"


async def test_of_several_devices_each_is_asked_whether_it_is_lost(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = running.engine._thread
    monkeypatch.setattr(thread, "_devices", (torch.device("cuda", 0), torch.device("cuda", 1)))
    monkeypatch.setattr(engine_thread, "is_lost", lambda device: device.index == 1)

    def fails() -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(thread, "self_check", fails)
    assert not await asyncio.to_thread(thread._computes)
    assert running.engine.status.problem() == "cuda:1 is lost to this process (RuntimeError)"


async def test_a_device_that_is_lost_in_a_trial_ends_the_engine_too(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device(running, math.inf, monkeypatch)
    monkeypatch.setattr(engine_thread, "is_lost", lambda device: True)
    stack = random_stack(running.served.base.identity.dims, 9)
    with pytest.raises(EngineFailure):
        await running.engine.stacks.publish("new", running.write("new", stack))
    await asyncio.wait_for(running.engine.ended(), 60)
    assert running.engine.status.problem() == "cpu is lost to this process (RuntimeError)"


@pytest.mark.parametrize("where", ["step", "trial"])
async def test_memory_that_ran_out_is_given_back_before_anything_is_computed_again(
    running: Running, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    one = request("again", prompt_of(4), fixed(chat=1.0))
    before = await collect(stream(running.engine, one))
    device = Device(running, 1, monkeypatch, torch.OutOfMemoryError("no memory"))
    kept: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: kept.append(device.calls))
    new = running.write("new", random_stack(running.served.base.identity.dims, 9))
    hurt: dict[str, Callable[[], Awaitable[object]]] = {
        "step": partial(collect, stream(running.engine, request("hurt", prompt_of(5), fixed(chat=1.0)))),
        "trial": partial(running.engine.stacks.publish, "new", new),
    }
    with pytest.raises(Unavailable, match="found no room in the device's memory"):
        await hurt[where]()
    assert await collect(stream(running.engine, one)) == before
    assert kept == [1], "after what failed, and before the check"
    assert running.engine.status.readiness().ready
    assert running.engine.stacks.names() == ["chat", "code", "math"]


async def test_a_gpu_is_the_engines_threads_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[tuple[str, torch.device]] = []

    def use(device: torch.device) -> None:
        threads.append((threading.current_thread().name, device))

    monkeypatch.setattr(engine_thread, "use", use)
    running = Running(tmp_path)
    await running.engine.close()
    assert threads == [("engine", running.served.base.device)]


async def test_a_thread_that_breaks_ends_the_engine_as_a_broken_device_does(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def broken() -> None:
        running.engine._thread.put(lambda: None, told.append)
        raise RuntimeError("no step can do this")

    waiting = asyncio.create_task(collect(stream(running.engine, request("r", prompt_of(4)))))
    monkeypatch.setattr(running.served.engine, "step", broken)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, 60)
    await asyncio.wait_for(running.engine.ended(), 60)
    assert running.engine.status.problem() == "the engine's thread failed (RuntimeError)"
    assert [type(each) for each in told] == [Unavailable], "what had not been taken in yet"


async def test_a_step_that_never_ends_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_thread, "STOP_SECONDS", 0.01)
    running = Running(tmp_path)
    hold = running.hold()
    with caplog.at_level(logging.ERROR):
        await asyncio.wait_for(running.engine.close(), 60)
    assert "left behind" in caplog.text
    hold.set()
    await asyncio.wait_for(running.engine.ended(), 60)
