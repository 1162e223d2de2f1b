"""The engine behind asyncio: aborts, drains, and changes of what is served under running streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.engine.request import (
    CompositionRequest,
    Event,
    GenerationRequest,
    RoutedEvent,
    TextEvent,
)
from brainstacks.errors import (
    Conflict,
    ContextTooLong,
    DomainNotFound,
    IncompatibleArtifact,
    InvalidArtifact,
    InvalidRequest,
    Overloaded,
    StaleGeneration,
    Unavailable,
)
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import StackTensors
from tests.engine.driving import DOMAINS, Served, fixed, prompt_of, request, serve
from tests.tiny import plain_greedy, random_stack, tiny_model, write_router, write_stack

pytestmark = pytest.mark.anyio
ROUTED = CompositionRequest("routed")


class Running:
    """An `AsyncEngine` over a tiny base whose thread a test can hold."""

    def __init__(self, directory: Path, **limits: Any) -> None:
        self.served: Served = serve(directory, router=True, **limits)
        tokenizer = self.served.base.chat_tokenizer()
        self.directory = directory
        self.step = self.served.engine.step
        self.gate = threading.Event()
        self.gate.set()
        self.pauses = False
        self.served.engine.step = self._step  # type: ignore[method-assign]
        self.engine = AsyncEngine(self.served.engine, self.served.registry, tokenizer)

    def _step(self) -> None:
        if not self.gate.wait(300):
            raise AssertionError("the test never resumed the engine")
        if not self.pauses:
            self.step()
            return
        self.gate.clear()  # before the step: a test that sees its token may set the gate at once
        self.step()
        self.pauses = not any(s.output_ids for s in self.served.engine._scheduler.running)
        if self.pauses:
            self.gate.set()

    def pause_at_first_token(self) -> None:
        """Let the engine run to the first token that any request gets, and no further until `gate` is set."""
        self.pauses = True

    def hold(self) -> threading.Event:
        """Keep the engine's thread from its next command and step until the event is set."""
        gate = threading.Event()

        def wait() -> None:
            gate.wait(300)

        self.engine._commands.put(wait)
        return gate

    def write(self, domain: str, stack: StackTensors) -> Path:
        return write_stack(
            self.directory / f"{domain}-new.safetensors", self.served.base.identity, domain, stack
        )

    async def told_to_abort(self) -> None:
        """Until an abort is in the engine's queue, or is done already."""
        while self.engine._commands.empty() and self.served.engine.has_work:
            await asyncio.sleep(0)

    async def idle(self) -> bool:
        """After all commands so far: nothing runs, waits or is pinned."""
        assert await self.engine.healthy()
        load = self.engine.load()
        return (load.running, load.waiting) == (0, 0) and not any(d.in_flight for d in self.engine.domains())


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    made = Running(tmp_path)
    yield made
    await made.engine.close()


def long(name: str, composition: CompositionRequest, seed: int = 0) -> GenerationRequest:
    return request(name, prompt_of(6, seed), composition, max_tokens=120, ignore_eos=True)


async def collect(events: AsyncIterator[Event]) -> list[int]:
    """The token ids of a stream's completion 0."""
    return [i async for e in events if isinstance(e, TextEvent) and e.index == 0 for i in e.token_ids]


async def begin(events: AsyncIterator[Event]) -> list[int]:
    """Read up to the first token."""
    assert isinstance(await anext(events), RoutedEvent)
    first = await anext(events)
    assert isinstance(first, TextEvent)
    return list(first.token_ids)


def expected(running: Running, one: GenerationRequest, count: int = 120) -> list[int]:
    plain = running.served.plain(one.composition)
    return plain_greedy(tiny_model(), one.prompt_ids, count, plain, ends=())


async def test_streams_side_by_side_equal_plain_generation(running: Running) -> None:
    requests = [
        request(f"r{i}", prompt_of(4 + i), composition, max_tokens=10, ignore_eos=True)
        for i, composition in enumerate([fixed(chat=1.0), CompositionRequest("base"), fixed(math=0.5)])
    ]
    found = await asyncio.gather(*(collect(running.engine.generate(r)) for r in requests))
    for one, ids in zip(requests, found, strict=True):
        assert ids == expected(running, one, 10)
    assert await running.idle()


async def test_closing_the_iterator_aborts_the_request(running: Running) -> None:
    running.pause_at_first_token()
    events = running.engine.generate(long("r", fixed(chat=1.0)))
    await begin(events)
    await events.aclose()  # type: ignore[attr-defined]
    running.gate.set()
    assert await running.idle()


async def test_cancelling_the_reader_aborts_the_request(running: Running) -> None:
    gate = running.hold()
    task = asyncio.create_task(collect(running.engine.generate(long("r", fixed(chat=1.0)))))
    await asyncio.sleep(0)  # let the task start
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await running.idle()


async def test_many_streams_opened_and_dropped_leave_nothing(running: Running) -> None:
    canary = request("canary", prompt_of(5), fixed(math=1.0))
    before = await collect(running.engine.generate(canary))
    streams = [running.engine.generate(long(f"r{i}", fixed(chat=1.0), i)) for i in range(20)]
    await asyncio.gather(*(anext(s) for s in streams[:10]))
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]
    assert await running.idle()
    assert await collect(running.engine.generate(canary)) == before


async def test_refusals_reach_the_caller_as_they_are(running: Running) -> None:
    for bad, error in [
        (request("a", prompt_of(500), max_tokens=100), ContextTooLong),
        (request("b", [1], fixed(poetry=1.0)), InvalidRequest),
        (request("c", []), InvalidRequest),
    ]:
        with pytest.raises(error):
            await anext(running.engine.generate(bad))
    assert await running.idle()


async def test_a_full_queue_is_overloaded_and_the_accepted_ones_finish(tmp_path: Path) -> None:
    running = Running(tmp_path, max_queue=2)
    gate = running.hold()
    accepted = [
        asyncio.create_task(collect(running.engine.generate(request(f"r{i}", prompt_of(4)))))
        for i in range(2)
    ]
    await asyncio.sleep(0)
    refused = asyncio.create_task(collect(running.engine.generate(request("late", prompt_of(4)))))
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(Overloaded):
        await refused
    assert all(await asyncio.gather(*accepted))
    await running.engine.close()


async def test_a_publication_leaves_running_streams_as_they_are_and_serves_the_next(running: Running) -> None:
    engine, one = running.engine, long("r", fixed(math=1.0))
    running.pause_at_first_token()
    events = engine.generate(one)
    ids = await begin(events)
    new = random_stack(running.served.base.identity.dims, 77, rounds=2)
    published = await engine.publish_stack("math", running.write("math", new))
    assert (published.version, published.created) == (2, True)
    assert set(running.served.engine.residency.bank.keys) == {
        ("chat", 1),
        ("code", 1),
        ("math", 1),
        ("math", 2),
    }
    running.gate.set()
    ids += await collect(events)
    assert ids == expected(running, one)
    after = request("after", prompt_of(6), fixed(math=1.0))
    found = await collect(engine.generate(after))
    assert found == plain_greedy(tiny_model(), after.prompt_ids, 8, [(new, 1.0)])
    assert engine.routing_record("after").stacks["math"].version == 2
    await engine.reload()  # waits for whatever the residency still does
    assert set(running.served.engine.residency.bank.keys) == {("chat", 1), ("code", 1), ("math", 2)}


async def test_a_new_domain_is_served_to_the_next_request(running: Running) -> None:
    stack = random_stack(running.served.base.identity.dims, 55)
    with pytest.raises(InvalidRequest, match="'law'"):
        await anext(running.engine.generate(request("early", [1], fixed(law=1.0))))
    await running.engine.publish_stack("law", running.write("law", stack))
    one = request("r", prompt_of(5), fixed(law=1.0))
    assert await collect(running.engine.generate(one)) == plain_greedy(
        tiny_model(), one.prompt_ids, 8, [(stack, 1.0)]
    )
    assert not running.engine.domain("law").routable


async def test_deleting_a_domain_in_use_lets_its_streams_finish(running: Running) -> None:
    engine, one = running.engine, long("r", fixed(math=1.0, chat=0.4))
    running.pause_at_first_token()
    events = engine.generate(one)
    ids = await begin(events)
    await engine.delete_stack("math", purge=True)
    assert [d.domain for d in engine.domains()] == ["chat", "code"]
    assert engine.domain("chat").in_flight == 1
    with pytest.raises(InvalidRequest, match="'math'"):
        await anext(engine.generate(request("late", [1], fixed(math=1.0))))
    running.gate.set()
    ids += await collect(events)
    assert ids == expected(running, one)
    await engine.reload()
    assert set(running.served.engine.residency.bank.keys) == {("chat", 1), ("code", 1)}
    with pytest.raises(DomainNotFound):
        engine.domain("math")


async def test_rolling_back_serves_the_old_version_again(running: Running) -> None:
    engine, one = running.engine, request("r", prompt_of(5), fixed(math=1.0))
    before = await collect(engine.generate(one))
    await engine.publish_stack(
        "math", running.write("math", random_stack(running.served.base.identity.dims, 8))
    )
    assert not engine.domain("math").routable
    await engine.activate_stack("math", 1)
    assert engine.domain("math").routable
    assert await collect(engine.generate(one)) == before


async def test_what_does_not_fit_is_refused_and_nothing_changes(running: Running, tmp_path: Path) -> None:
    engine = running.engine
    generation = engine.generation
    (tmp_path / "noise").write_bytes(b"\x80\x04." * 9)
    with pytest.raises(InvalidArtifact):
        await engine.publish_stack("math", tmp_path / "noise")
    other = tmp_path / "other.safetensors"
    dims = {**running.served.base.identity.dims, "q_proj": (32, 40)}
    identity = running.served.base.identity.__class__(**{**vars(running.served.base.identity), "dims": dims})
    write_stack(other, identity, "math", random_stack(dims, 1))
    with pytest.raises(IncompatibleArtifact, match="q_proj"):
        await engine.publish_stack("math", other)
    good = running.write("math", random_stack(running.served.base.identity.dims, 8))
    with pytest.raises(StaleGeneration):
        await engine.publish_stack("math", good, expected_generation=generation - 1)
    assert engine.generation == generation
    assert engine.domain("math").version == 1


async def test_routes_are_told_without_generating_and_routed_requests_follow_them(running: Running) -> None:
    prompt = prompt_of(9)
    routing = await running.engine.route("route", prompt, ROUTED)
    assert routing.probabilities is not None
    assert list(routing.probabilities) == list(DOMAINS)
    assert running.engine.routing_record("route") == routing
    routed = await collect(running.engine.generate(request("a", prompt, ROUTED)))
    weights = {d: routing.weights[d] for d in routing.active}
    assert routed == await collect(
        running.engine.generate(request("b", prompt, CompositionRequest("fixed", weights)))
    )
    assert await running.idle()


async def test_a_newer_stack_is_not_routed_to_until_its_router_is_published(
    running: Running, tmp_path: Path
) -> None:
    engine, identity = running.engine, running.served.base.identity
    await engine.publish_stack("chat", running.write("chat", random_stack(identity.dims, 8)))
    routing = await engine.route("stale", prompt_of(9), ROUTED)
    assert routing.weights["chat"] == 0.0
    assert not engine.domain("chat").routable
    await engine.publish_router(write_router(tmp_path / "new.safetensors", running.served.registry, identity))
    routing = await engine.route("fresh", prompt_of(9), ROUTED)
    assert routing.weights["chat"] > 0.0
    assert engine.domain("chat").routable
    status = engine.router()
    assert status is not None
    assert (status.version, status.domains) == (2, DOMAINS)


async def test_a_drain_lets_running_requests_finish_and_takes_no_new_ones(running: Running) -> None:
    engine, one = running.engine, long("r", fixed(chat=1.0))
    events = engine.generate(one)
    ids = await begin(events)
    rest = asyncio.create_task(collect(events))
    await engine.drain(timeout=120)
    assert ids + await rest == expected(running, one)
    with pytest.raises(Unavailable):
        await anext(engine.generate(request("late", [1])))
    with pytest.raises(Unavailable):
        await engine.route("late", [1], ROUTED)
    assert not engine.readiness().ready


async def test_a_drain_that_runs_out_of_time_tells_the_rest(running: Running) -> None:
    running.pause_at_first_token()
    events = running.engine.generate(long("r", fixed(chat=1.0)))
    await begin(events)
    rest = asyncio.create_task(collect(events))
    drain = asyncio.create_task(running.engine.drain(timeout=0))
    await running.told_to_abort()
    running.gate.set()
    await drain
    with pytest.raises(Unavailable, match="shut down"):
        await rest
    assert await running.idle()


async def test_closing_the_engine_ends_open_streams_instead_of_leaving_them_waiting(tmp_path: Path) -> None:
    running = Running(tmp_path)
    running.pause_at_first_token()
    events = running.engine.generate(long("r", fixed(chat=1.0)))
    await begin(events)
    rest = asyncio.create_task(collect(events))
    close = asyncio.create_task(running.engine.close())
    await running.told_to_abort()
    running.gate.set()
    await close
    with pytest.raises(Unavailable):
        await asyncio.wait_for(rest, 300)


async def test_health_follows_the_engines_thread(tmp_path: Path) -> None:
    running = Running(tmp_path)
    assert await running.engine.healthy()
    assert running.engine.readiness().ready
    await running.engine.close()
    assert not await running.engine.healthy()
    assert not running.engine.readiness().ready


async def test_the_engine_survives_a_step_that_fails(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainstacks.errors import EngineFailure

    with monkeypatch.context() as broken:
        broken.setattr(running.served.engine._runner, "run", lambda *_: 1 / 0)
        with pytest.raises(EngineFailure):
            await collect(running.engine.generate(request("r", prompt_of(4))))
    assert await running.engine.healthy()
    one = request("after", prompt_of(4))
    assert await collect(running.engine.generate(one)) == expected(running, one, 8)


# --- readers that do not read, ids that are taken --------------------------------------------------


async def test_a_reader_that_stops_reading_pauses_its_own_request_and_nobody_elses(tmp_path: Path) -> None:
    running = Running(tmp_path, max_unread_events=8)
    step_engine, loop = running.served.engine, asyncio.get_running_loop()
    pause, resume, paused = step_engine.pause, step_engine.resume, asyncio.Event()
    resumed: list[str] = []

    def watched_pause(request_id: str) -> None:
        pause(request_id)
        loop.call_soon_threadsafe(paused.set)

    def watched_resume(request_id: str) -> None:
        resumed.append(request_id)
        resume(request_id)

    def produced() -> int:
        return len(step_engine._jobs["slow"].sequences[0].output_ids)

    step_engine.pause = watched_pause  # type: ignore[method-assign]
    step_engine.resume = watched_resume  # type: ignore[method-assign]
    slow, other = long("slow", fixed(chat=1.0)), long("other", fixed(chat=1.0), seed=1)
    events = running.engine.generate(slow)
    ids = await begin(events)
    await paused.wait()
    count = produced()
    assert await collect(running.engine.generate(other)) == expected(running, other)
    assert produced() == count
    assert resumed == []
    ids += await collect(events)
    assert ids == expected(running, slow)
    assert resumed[0] == "slow"
    assert await running.idle()
    await running.engine.close()


async def test_a_request_that_nobody_reads_any_more_ends_when_it_is_closed(tmp_path: Path) -> None:
    running = Running(tmp_path, max_unread_events=1)
    events = running.engine.generate(long("r", fixed(chat=1.0)))
    await begin(events)
    await events.aclose()  # type: ignore[attr-defined]
    assert await running.idle()
    await running.engine.close()


async def test_an_id_that_is_in_use_is_refused_and_its_owner_goes_on(running: Running) -> None:
    engine, one = running.engine, long("r", fixed(chat=1.0))
    running.pause_at_first_token()
    events = engine.generate(one)
    ids = await begin(events)
    with pytest.raises(InvalidRequest, match="'r' is in use"):
        await anext(engine.generate(request("r", prompt_of(4))))
    with pytest.raises(InvalidRequest, match="'r' is in use"):
        await engine.route("r", prompt_of(4), ROUTED)
    drain = asyncio.create_task(engine.drain(timeout=300))
    await asyncio.sleep(0)
    assert not drain.done(), "the first one still counts"
    running.gate.set()
    assert ids + await collect(events) == expected(running, one)
    await drain


# --- where stacks are -----------------------------------------------------------------------------


async def test_the_engines_thread_rests_while_there_is_nothing_but_a_load_to_wait_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, add = running.engine, StackBank.add
    loading, go_on, steps = threading.Event(), threading.Event(), 0

    def slow(bank: StackBank, *args: Any) -> None:
        loading.set()
        assert go_on.wait(300)
        add(bank, *args)

    def counted() -> None:
        nonlocal steps
        steps += 1
        step()

    await engine.evict_stack("math")
    step = running.served.engine.step
    monkeypatch.setattr(running.served.engine, "step", counted)
    monkeypatch.setattr(StackBank, "add", slow)
    cold, warm = (
        request("cold", prompt_of(5), fixed(math=1.0)),
        request("warm", prompt_of(5), fixed(chat=1.0)),
    )
    waiting = asyncio.create_task(collect(engine.generate(cold)))
    assert await asyncio.to_thread(loading.wait, 300)
    assert await engine.healthy()
    before = steps
    for _ in range(5):
        assert await engine.healthy()
    assert steps == before
    assert await collect(engine.generate(warm)) == expected(running, warm, 8), "others are not held up"
    assert not waiting.done()
    go_on.set()
    assert await waiting == expected(running, cold, 8)
    assert await running.idle()


async def test_stacks_are_moved_on_request_and_answers_do_not_depend_on_where_they_were(
    running: Running,
) -> None:
    engine, one = running.engine, request("r", prompt_of(5), fixed(math=1.0))
    assert (await engine.load_stack("math")).residency == "device"
    before = await collect(engine.generate(one))
    assert (await engine.evict_stack("math")).residency == "host"
    assert await collect(engine.generate(one)) == before
    assert engine.domain("math").residency == "device"
    assert (await engine.pin_stack("math")).pinned
    with pytest.raises(Conflict, match="pinned"):
        await engine.evict_stack("math")
    assert not (await engine.unpin_stack("math")).pinned
    for move in (engine.pin_stack, engine.unpin_stack, engine.evict_stack, engine.load_stack):
        with pytest.raises(DomainNotFound, match="poetry"):
            await move("poetry")
    stats = engine.residency()
    assert (stats.loads, stats.hits, stats.misses) == ({"host": 1, "disk": 3}, 3, 1)


async def test_a_stack_in_use_is_not_evicted(running: Running) -> None:
    running.pause_at_first_token()
    events = running.engine.generate(long("r", fixed(math=1.0)))
    await begin(events)
    with pytest.raises(Conflict, match="math version 1 is in use"):
        await running.engine.evict_stack("math")
    running.gate.set()
    await collect(events)


async def test_the_version_that_is_shown_is_the_one_that_is_served(running: Running) -> None:
    engine, registry = running.engine, running.served.registry
    good = engine.domain("math").digest
    published = registry.publish(running.write("math", random_stack(running.served.base.identity.dims, 8)))
    path = registry.blob_path(published.digest)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    await engine.reload()
    status = engine.domain("math")
    assert (status.version, status.digest) == (1, good)
    assert [version["version"] for version in status.versions] == [1, 2]
    assert engine.readiness().ready
    assert "math version 2" in engine.readiness().problems[0]


async def test_with_room_for_two_of_three_stacks_everybody_gets_the_right_answer(tmp_path: Path) -> None:
    running = Running(tmp_path, device_stack_bytes=None)
    sizes = {name: r.nbytes for name, r in running.served.engine.residency.serving.items()}
    await running.engine.close()
    budget = sizes["chat"] + sizes["math"]
    running = Running(tmp_path / "tight", device_stack_bytes=budget, host_stack_bytes=sizes["code"])
    pairs = [("chat", "code"), ("math",), ("code",), ("code", "math"), (), ("chat",)]
    requests = [
        request(f"r{i}", prompt_of(4 + i % 3), fixed(**dict.fromkeys(pairs[i % 6], 0.5 + i / 20)))
        for i in range(18)
    ]
    answers = await asyncio.gather(*(collect(running.engine.generate(one)) for one in requests))
    for one, ids in zip(requests, answers, strict=True):
        assert ids == expected(running, one, 8)
    assert await running.idle()
    stats = running.engine.residency()
    assert stats.bytes["device"] <= budget
    assert stats.bytes["host"] <= sizes["code"]
    assert stats.evictions["device"] > 0
    everything = fixed(chat=1.0, code=1.0, math=1.0)
    with pytest.raises(InvalidRequest, match="--device-stack-bytes"):
        await collect(running.engine.generate(request("all", prompt_of(4), everything)))
    assert await running.idle()
    await running.engine.close()
