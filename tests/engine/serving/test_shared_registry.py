"""Engines that share a registry: each follows what the others publish, and of two writers one wins."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.engine.request import GenerationRequest, RoutedEvent, TextEvent
from brainstacks.errors import Conflict
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from tests.engine.async_driving import Running, collect, expected, stream
from tests.engine.driving import fixed, prompt_of, request
from tests.tiny import plain_greedy, random_stack, tiny_model

pytestmark = pytest.mark.anyio

SOON = 0.01
"""Seconds between two looks."""


@pytest.fixture
async def other(running: Running) -> AsyncIterator[AsyncEngine]:
    """A second engine on the registry of `running`, with a `Registry` of its own, as another process has."""
    directory = running.directory
    made = AsyncEngine.open(base=directory / "base", registry=directory / "registry", quantization="none")
    yield made
    await made.close()


async def answered(engine: AsyncEngine, one: GenerationRequest) -> tuple[int, list[int]]:
    """The version that a request on math ran with by its record, and its tokens."""
    version = 0
    ids: list[int] = []
    async for event in stream(engine, one):
        if isinstance(event, RoutedEvent):
            version = event.routing.stacks["math"].version
        elif isinstance(event, TextEvent):
            ids += event.token_ids
    return version, ids


async def test_what_one_publishes_the_other_serves_by_itself_and_no_answer_is_mixed(
    running: Running, other: AsyncEngine
) -> None:
    following = asyncio.create_task(other.stacks.follow(SOON))
    one = request("r", prompt_of(5), fixed(math=1.0))
    new = random_stack(running.served.base.identity.dims, 77, rounds=2)
    texts: Mapping[int, list[int]] = {
        1: expected(running, one, 8),
        2: plain_greedy(tiny_model(), one.prompt_ids, 8, [(new, 1.0)]),
    }
    assert texts[1] != texts[2]
    version, ids = await answered(other, one)
    assert (version, ids) == (1, texts[1])
    published = await running.engine.stacks.publish("math", running.write("math", new))
    count = 0
    while version == 1:
        version, ids = await answered(other, dataclasses.replace(one, request_id=f"r{count}"))
        assert ids == texts[version]
        count += 1
    assert other.stacks.generation == published.generation
    again = await other.stacks.activate("math", 1, expected_generation=published.generation)
    assert again.version == 1, "a generation that another made is known here"
    following.cancel()


async def test_nothing_is_read_while_nothing_has_changed(
    other: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, enough, changed = 0, asyncio.Event(), Registry.changed
    loop = asyncio.get_running_loop()

    def looked(registry: Registry) -> bool:
        nonlocal looks
        looks += 1
        if looks == 5:
            loop.call_soon_threadsafe(enough.set)
        return changed(registry)

    monkeypatch.setattr(Registry, "changed", looked)
    monkeypatch.setattr(Registry, "reload", lambda _: 1 / 0)
    following = asyncio.create_task(other.stacks.follow(SOON))
    await enough.wait()
    assert other.status.readiness().problems == ()
    following.cancel()


async def test_a_registry_that_cannot_be_read_is_named_and_everything_serves_on(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    engine, manifest = running.engine, running.directory / "registry" / "manifest.json"
    content, one = manifest.read_bytes(), request("r", prompt_of(5), fixed(math=1.0))
    following = asyncio.create_task(engine.stacks.follow(SOON))
    with caplog.at_level(logging.WARNING):
        manifest.with_name("broken").write_text('{"format_version": 9}')
        manifest.with_name("broken").replace(manifest)
        while not (problems := engine.status.readiness().problems):
            await asyncio.sleep(0)
        assert "has format version 9, and this program reads 1" in problems[0]
        assert engine.status.readiness().ready
        assert await collect(stream(engine, one)) == expected(running, one, 8)
        manifest.with_name("whole").write_bytes(content)
        manifest.with_name("whole").replace(manifest)
        while engine.status.readiness().problems:
            await asyncio.sleep(0)
    assert len(caplog.records) == 1, "it is said once, however often it is seen"
    following.cancel()


@pytest.mark.parametrize("domain", ["math", "new"])
async def test_of_writers_that_began_together_one_wins_and_the_others_conflict(
    running: Running, other: AsyncEngine, tmp_path: Path, domain: str
) -> None:
    """Whichever process they ask, and however long their files take to arrive."""
    dims, engines = running.served.base.identity.dims, (running.engine, other, running.engine, other)
    before = [await engine.stacks.stored() for engine in engines]
    outcomes = await asyncio.gather(
        *(
            engine.stacks.publish(
                domain, written(running, domain, i, random_stack(dims, 90 + i)), before=seen
            )
            for i, (engine, seen) in enumerate(zip(engines, before, strict=True))
        ),
        return_exceptions=True,
    )
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(won) == 1
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome not in won)
    assert (await other.stacks.stored()).domain(domain).current.digest == won[0].digest


def written(running: Running, domain: str, number: int, stack: StackTensors) -> Path:
    path = running.write(domain, stack)
    return path.rename(path.with_name(f"{domain}-{number}.safetensors"))


async def test_a_file_under_another_domains_name_is_not_served(running: Running) -> None:
    """A manifest that was written by hand, say."""
    manifest = running.directory / "registry" / "manifest.json"
    versions = running.served.registry.snapshot().domains
    chat, math = versions["chat"].current, versions["math"].current
    manifest.write_text(manifest.read_text().replace(math.digest, chat.digest))
    await running.engine.stacks.reload()
    (problem,) = running.engine.status.readiness().problems[:1]
    assert problem.startswith("math version 1: the stored file is a stack of 'chat', and the manifest lists")
    assert running.engine.stacks.domain("math").digest == math.digest, "the last good one serves on"
    one = request("r", prompt_of(5), fixed(math=1.0))
    assert await collect(stream(running.engine, one)) == expected(running, one, 8)
