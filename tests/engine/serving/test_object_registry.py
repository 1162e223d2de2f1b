"""An engine on a registry in a bucket: it serves on from what it has when that is gone, and follows again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from brainstacks.base_model import identify_base
from brainstacks.config import EngineConfig
from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.errors import Unavailable
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.registry import Registry
from tests.engine.async_driving import collect, stream
from tests.engine.driving import fixed, prompt_of, request
from tests.stacks.faulty_proxy import FaultyProxy, Stall, always, standing_before
from tests.stacks.s3_server import S3Server, use
from tests.tiny import plain_greedy, random_stack, tiny_model, write_stack

pytestmark = pytest.mark.anyio

SOON = 0.01
"""Seconds between two looks."""

ASKED = request("r", prompt_of(5), fixed(chat=1.0), ignore_eos=True)


class Cloud:
    """Attributes:
    proxy: before the bucket.
    """

    def __init__(self, proxy: FaultyProxy, root: str, base: Path, directory: Path) -> None:
        self.proxy = proxy
        self.root = root
        self.base = base
        self.directory = directory

    def publish(self, seed: int, domain: str = "chat") -> list[int]:
        """From another machine; the tokens that the stack answers with."""
        identity = identify_base(self.base)
        stack = random_stack(identity.dims, seed)
        path = write_stack(self.directory / f"{domain}-{seed}", identity, domain, stack)
        Registry(self.root, cache=BlobCache(self.directory / "another")).publish(path)
        return plain_greedy(tiny_model(), ASKED.prompt_ids, 8, [(stack, 1.0)])

    def engine(self, machine: str = "this") -> AsyncEngine:
        return AsyncEngine.open(
            base=self.base,
            registry=self.root,
            cache=BlobCache(self.directory / machine),
            quantization="none",
            config=EngineConfig(backend="torch"),
        )


@pytest.fixture
def cloud(
    s3: S3Server, tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cloud]:
    monkeypatch.setattr("brainstacks.stacks.bucket_url.SILENCE", 0.3)
    monkeypatch.setattr("brainstacks.stacks.bucket_url.RETRIES", 0)
    with standing_before(s3.url) as proxy:
        use(monkeypatch, s3.environment(proxy.url))
        yield Cloud(proxy, s3.registry(), tiny_directory, tmp_path)


@pytest.fixture
async def opened() -> AsyncIterator[Callable[[AsyncEngine], AsyncEngine]]:
    """Closes what it is given at the end."""
    engines: list[AsyncEngine] = []

    def remember(engine: AsyncEngine) -> AsyncEngine:
        engines.append(engine)
        return engine

    yield remember
    for engine in engines:
        await engine.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(SOON)


Opened = Callable[[AsyncEngine], AsyncEngine]


async def test_what_another_machine_publishes_is_served_by_itself(cloud: Cloud, opened: Opened) -> None:
    texts = cloud.publish(1)
    engine = opened(cloud.engine())
    assert await collect(stream(engine, ASKED)) == texts
    following = asyncio.create_task(engine.stacks.follow(SOON))
    new = await asyncio.to_thread(cloud.publish, 2)
    await until(lambda: engine.stacks.domain("chat").version == 2)
    assert await collect(stream(engine, ASKED)) == new != texts
    following.cancel()


async def test_while_the_bucket_answers_nothing_requests_run_and_ready_says_why_nothing_changes(
    cloud: Cloud, opened: Opened
) -> None:
    texts = cloud.publish(1)
    engine = opened(cloud.engine())
    following = asyncio.create_task(engine.stacks.follow(SOON))
    cloud.proxy.before = always(Stall())
    await until(lambda: any("cannot be reached" in p for p in engine.status.readiness().problems))
    assert engine.status.readiness().ready
    assert await collect(stream(engine, ASKED)) == texts
    with pytest.raises(Unavailable, match="cannot be reached"):
        await engine.stacks.stored()
    cloud.proxy.before = lambda asked: None
    await until(lambda: not any("cannot be reached" in p for p in engine.status.readiness().problems))
    following.cancel()


async def test_a_start_without_the_bucket_serves_what_was_last_known_and_goes_on_when_it_is_back(
    cloud: Cloud, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    texts = cloud.publish(1)
    await cloud.engine().close()
    cloud.proxy.before = always(Stall())
    with pytest.raises(Unavailable):
        cloud.engine("one that never saw it")
    with caplog.at_level(logging.WARNING):
        engine = opened(cloud.engine())
    assert "generation 1 is served, the last that was seen here" in caplog.text
    assert any("the last that was seen here" in p for p in engine.status.readiness().problems)
    assert engine.status.readiness().ready
    assert await collect(stream(engine, ASKED)) == texts
    cloud.proxy.before = lambda asked: None
    new = await asyncio.to_thread(cloud.publish, 2)
    following = asyncio.create_task(engine.stacks.follow(SOON))
    await until(lambda: engine.stacks.generation == 2)
    await until(lambda: not any("seen here" in p for p in engine.status.readiness().problems))
    await until(lambda: engine.stacks.domain("chat").version == 2)
    assert await collect(stream(engine, ASKED)) == new
    following.cancel()


async def test_a_file_that_cannot_be_fetched_leaves_the_last_good_version_until_it_can(
    cloud: Cloud, opened: Opened
) -> None:
    texts = cloud.publish(1)
    engine = opened(cloud.engine())
    new = await asyncio.to_thread(cloud.publish, 2)
    cloud.proxy.before = always(Stall(), "blobs")
    await engine.stacks.reload()
    assert any("chat version 2" in problem for problem in engine.status.readiness().problems)
    assert await collect(stream(engine, ASKED)) == texts
    cloud.proxy.before = lambda asked: None
    following = asyncio.create_task(engine.stacks.follow(SOON))
    await until(lambda: engine.stacks.domain("chat").version == 2)
    assert await collect(stream(engine, ASKED)) == new
    following.cancel()


async def test_a_purge_that_the_bucket_leaves_unanswered_holds_up_no_load(
    cloud: Cloud, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brainstacks.stacks.bucket_url.SILENCE", 60)
    cloud.publish(1)
    cloud.publish(2, "code")
    engine = opened(cloud.engine())
    await engine.stacks.evict("code")
    cloud.proxy.before = always(Stall(), "list-type=2")
    deleting = asyncio.create_task(engine.stacks.delete("chat", purge=True))
    await until(lambda: any("list-type=2" in asked for asked in cloud.proxy.asked))
    assert (await engine.stacks.load("code")).residency == "device"
    assert not deleting.done()
    cloud.proxy.vanish()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await deleting
