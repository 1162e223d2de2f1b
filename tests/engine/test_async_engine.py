"""The engine behind asyncio: aborts, drains, and changes of what is served under running streams."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.engine.request import (
    CompositionRequest,
)
from brainstacks.errors import (
    ContextTooLong,
    DomainNotFound,
    IncompatibleArtifact,
    InvalidArtifact,
    InvalidRequest,
    Overloaded,
    StaleGeneration,
)
from tests.engine.async_driving import Running, begin, collect, expected, long, stream
from tests.engine.driving import DOMAINS, fixed, prompt_of, request
from tests.tiny import plain_greedy, random_stack, tiny_model, write_router, write_stack

ROUTED = CompositionRequest("routed")
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]


async def test_streams_side_by_side_equal_plain_generation(running: Running) -> None:
    requests = [
        request(f"r{i}", prompt_of(4 + i), composition, max_tokens=10, ignore_eos=True)
        for i, composition in enumerate([fixed(chat=1.0), CompositionRequest("base"), fixed(math=0.5)])
    ]
    found = await asyncio.gather(*(collect(stream(running.engine, r)) for r in requests))
    for one, ids in zip(requests, found, strict=True):
        assert ids == expected(running, one, 10)
    assert await running.idle()


async def test_closing_the_iterator_aborts_the_request(running: Running) -> None:
    running.pause_at_first_token()
    events = stream(running.engine, long("r", fixed(chat=1.0)))
    await begin(events)
    await events.aclose()
    running.gate.set()
    assert await running.idle()


async def test_cancelling_the_reader_aborts_the_request(running: Running) -> None:
    gate = running.hold()
    task = asyncio.create_task(collect(stream(running.engine, long("r", fixed(chat=1.0)))))
    await asyncio.sleep(0)  # let the task start
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await running.idle()


async def test_many_streams_opened_and_dropped_leave_nothing(running: Running) -> None:
    canary = request("canary", prompt_of(5), fixed(math=1.0))
    before = await collect(stream(running.engine, canary))
    streams = [stream(running.engine, long(f"r{i}", fixed(chat=1.0), i)) for i in range(20)]
    await asyncio.gather(*(anext(s) for s in streams[:10]))
    for one in streams:
        await one.aclose()
    assert await running.idle()
    assert await collect(stream(running.engine, canary)) == before


async def test_refusals_reach_the_caller_as_they_are(running: Running) -> None:
    for bad, error in [
        (request("a", prompt_of(500), max_tokens=100), ContextTooLong),
        (request("b", [1], fixed(poetry=1.0)), InvalidRequest),
        (request("c", []), InvalidRequest),
    ]:
        with pytest.raises(error):
            await anext(stream(running.engine, bad))
    assert await running.idle()


async def test_a_full_queue_is_overloaded_and_the_accepted_ones_finish(tmp_path: Path) -> None:
    running = Running(tmp_path, max_queue=2)
    gate = running.hold()
    accepted = [
        asyncio.create_task(collect(stream(running.engine, request(f"r{i}", prompt_of(4))))) for i in range(2)
    ]
    await asyncio.sleep(0)
    refused = asyncio.create_task(collect(stream(running.engine, request("late", prompt_of(4)))))
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(Overloaded):
        await refused
    assert all(await asyncio.gather(*accepted))
    await running.engine.close()


async def test_a_publication_leaves_running_streams_as_they_are_and_serves_the_next(running: Running) -> None:
    engine, one = running.engine, long("r", fixed(math=1.0))
    running.pause_at_first_token()
    events = stream(engine, one)
    ids = await begin(events)
    new = random_stack(running.served.base.identity.dims, 77, rounds=2)
    published = await engine.stacks.publish("math", running.write("math", new))
    assert (published.version, published.created) == (2, True)
    assert set(running.served.engine.stacks.bank.keys) == {
        ("chat", 1),
        ("code", 1),
        ("math", 1),
        ("math", 2),
    }
    running.gate.set()
    ids += await collect(events)
    assert ids == expected(running, one)
    after = request("after", prompt_of(6), fixed(math=1.0))
    found = await collect(stream(engine, after))
    assert found == plain_greedy(tiny_model(), after.prompt_ids, 8, [(new, 1.0)])
    assert engine.status.routing_record("after").stacks["math"].version == 2
    await engine.stacks.reload()  # waits for whatever the residency still does
    assert set(running.served.engine.stacks.bank.keys) == {("chat", 1), ("code", 1), ("math", 2)}


async def test_a_new_domain_is_served_to_the_next_request(running: Running) -> None:
    stack = random_stack(running.served.base.identity.dims, 55)
    with pytest.raises(InvalidRequest, match="'law'"):
        await anext(stream(running.engine, request("early", [1], fixed(law=1.0))))
    await running.engine.stacks.publish("law", running.write("law", stack))
    one = request("r", prompt_of(5), fixed(law=1.0))
    assert await collect(stream(running.engine, one)) == plain_greedy(
        tiny_model(), one.prompt_ids, 8, [(stack, 1.0)]
    )
    assert not running.engine.stacks.domain("law").routable


async def test_deleting_a_domain_in_use_lets_its_streams_finish(running: Running) -> None:
    engine, one = running.engine, long("r", fixed(math=1.0, chat=0.4))
    running.pause_at_first_token()
    events = stream(engine, one)
    ids = await begin(events)
    await engine.stacks.delete("math", purge=True)
    assert [d.domain for d in engine.stacks.domains()] == ["chat", "code"]
    assert engine.stacks.domain("chat").in_flight == 1
    with pytest.raises(InvalidRequest, match="'math'"):
        await anext(stream(engine, request("late", [1], fixed(math=1.0))))
    running.gate.set()
    ids += await collect(events)
    assert ids == expected(running, one)
    await engine.stacks.reload()
    assert set(running.served.engine.stacks.bank.keys) == {("chat", 1), ("code", 1)}
    with pytest.raises(DomainNotFound):
        engine.stacks.domain("math")


async def test_rolling_back_serves_the_old_version_again(running: Running) -> None:
    engine, one = running.engine, request("r", prompt_of(5), fixed(math=1.0))
    before = await collect(stream(engine, one))
    await engine.stacks.publish(
        "math", running.write("math", random_stack(running.served.base.identity.dims, 8))
    )
    assert not engine.stacks.domain("math").routable
    await engine.stacks.activate("math", 1)
    assert engine.stacks.domain("math").routable
    assert await collect(stream(engine, one)) == before


async def test_what_does_not_fit_is_refused_and_nothing_changes(running: Running, tmp_path: Path) -> None:
    engine = running.engine
    generation = engine.stacks.generation
    (tmp_path / "noise").write_bytes(b"\x80\x04." * 9)
    with pytest.raises(InvalidArtifact):
        await engine.stacks.publish("math", tmp_path / "noise")
    other = tmp_path / "other.safetensors"
    dims = {**running.served.base.identity.dims, "q_proj": (32, 40)}
    identity = running.served.base.identity.__class__(**{**vars(running.served.base.identity), "dims": dims})
    write_stack(other, identity, "math", random_stack(dims, 1))
    with pytest.raises(IncompatibleArtifact, match="q_proj"):
        await engine.stacks.publish("math", other)
    good = running.write("math", random_stack(running.served.base.identity.dims, 8))
    with pytest.raises(StaleGeneration):
        await engine.stacks.publish("math", good, expected_generation=generation - 1)
    assert engine.stacks.generation == generation
    assert engine.stacks.domain("math").version == 1


async def test_routes_are_told_without_generating_and_routed_requests_follow_them(running: Running) -> None:
    prompt = prompt_of(9)
    routing = await running.engine.route("route", prompt, ROUTED)
    assert routing.probabilities is not None
    assert list(routing.probabilities) == list(DOMAINS)
    assert running.engine.status.routing_record("route") == routing
    routed = await collect(stream(running.engine, request("a", prompt, ROUTED)))
    weights = {d: routing.weights[d] for d in routing.active}
    assert routed == await collect(
        stream(running.engine, request("b", prompt, CompositionRequest("fixed", weights)))
    )
    assert await running.idle()


async def test_a_newer_stack_is_not_routed_to_until_its_router_is_published(
    running: Running, tmp_path: Path
) -> None:
    engine, identity = running.engine, running.served.base.identity
    await engine.stacks.publish("chat", running.write("chat", random_stack(identity.dims, 8)))
    routing = await engine.route("stale", prompt_of(9), ROUTED)
    assert routing.weights["chat"] == 0.0
    assert not engine.stacks.domain("chat").routable
    await engine.stacks.publish_router(
        write_router(tmp_path / "new.safetensors", running.served.registry, identity)
    )
    routing = await engine.route("fresh", prompt_of(9), ROUTED)
    assert routing.weights["chat"] > 0.0
    assert engine.stacks.domain("chat").routable
    status = engine.stacks.router()
    assert status is not None
    assert (status.version, status.domains) == (2, DOMAINS)


async def test_the_engine_survives_a_step_that_fails(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainstacks.errors import EngineFailure

    with monkeypatch.context() as broken:
        broken.setattr(running.served.engine._runner, "launch", lambda *_: 1 / 0)
        with pytest.raises(EngineFailure):
            await collect(stream(running.engine, request("r", prompt_of(4))))
    await running.came_round()
    one = request("after", prompt_of(4))
    assert await collect(stream(running.engine, one)) == expected(running, one, 8)


async def test_a_registry_that_is_not_there_is_made_and_said_so(
    tiny_directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "brainstacks.engine.async_engine"):
        engine = AsyncEngine.open(base=tiny_directory, registry=tmp_path / "new", quantization="none")
    assert "an empty one is made" in caplog.text
    assert (engine.stacks.names(), engine.stacks.generation) == ([], 0)
    await engine.close()
    assert (tmp_path / "new").is_dir()
