from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from brainstacks.engine.request import Event, GenerationRequest, SamplingParams
from brainstacks.errors import EngineFailure
from server.metrics import Metrics
from server.reader import Reader
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


def run(engine: FakeEngine, prompts: int = 1) -> Reader:
    requests = [GenerationRequest(f"r{i}", (104, 105), SamplingParams(max_tokens=20)) for i in range(prompts)]
    return Reader(engine, requests, Metrics(engine), begin=0.0)


async def test_events_of_several_prompts_are_merged_and_counted(engine: FakeEngine) -> None:
    reader = run(engine, prompts=3)
    routed = await reader.start()
    assert [event.routing.request_id for event in routed] == ["r0", "r1", "r2"]
    texts = ["", "", ""]
    async for prompt, event in reader.texts():
        texts[prompt] += event.text
    assert texts == [engine.reply] * 3
    assert reader.usage == {"prompt_tokens": 6, "completion_tokens": 39, "total_tokens": 45}
    await reader.close()
    assert engine.aborted == []


async def test_closing_in_the_middle_aborts_every_prompt_before_it_returns(engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    reader = run(engine, prompts=3)
    await reader.start()

    async def read() -> None:
        async for _ in reader.texts():
            pass

    reading = asyncio.create_task(read())
    await asyncio.wait_for(engine.reached.wait(), 5)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await reader.close()
    await reader.close()
    assert sorted(engine.aborted) == ["r0", "r1", "r2"]


async def test_an_engine_that_never_routes_is_a_failure_and_not_a_hanging_request(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[int, Event]]:
        none: tuple[tuple[int, Event], ...] = ()
        for event in none:
            yield event

    monkeypatch.setattr(engine, "generate", nothing)
    with pytest.raises(EngineFailure):
        await asyncio.wait_for(run(engine).start(), 5)


async def test_a_cancellation_inside_the_engine_reaches_the_client_as_a_failure(engine: FakeEngine) -> None:
    engine.fail_after = (1, asyncio.CancelledError())
    reader = run(engine)
    await reader.start()
    with pytest.raises(EngineFailure):
        async for _ in reader.texts():
            pass
    await reader.close()


async def test_a_client_that_does_not_read_holds_the_engine_back(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, generate = 0, engine.generate

    async def counted(requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[int, Event]]:
        nonlocal taken
        async for event in generate(requests):
            taken += 1
            yield event
            await asyncio.sleep(0)

    monkeypatch.setattr(engine, "generate", counted)
    engine.reply = "x" * 1000
    request = GenerationRequest("r", (104,), SamplingParams(max_tokens=2000))
    reader = Reader(engine, [request], Metrics(engine), begin=0.0)
    await reader.start()
    for _ in range(500):
        await asyncio.sleep(0)
    held = taken
    assert held == 1, "what is not asked for stays with the engine"
    for _ in range(500):
        await asyncio.sleep(0)
    assert taken == held
    texts = reader.texts()
    assert [(await anext(texts))[1].text for _ in range(100)] == ["x"] * 100
    assert taken > held
    await asyncio.wait_for(reader.close(), 5)
    assert engine.aborted == ["r"]
