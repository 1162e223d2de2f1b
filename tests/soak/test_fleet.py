"""The short form of the fleet's soak, and what a user of a fleet sees."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx2 as httpx
import openai
import pytest

from tests.soak.client import Reply, ask
from tests.soak.fleet import PATIENCE, complete, flags, fleet, kill_one, replicas_of
from tests.soak.server_process import Server, metrics, serving
from tests.soak.world import World

pytestmark = pytest.mark.slow

REPLICAS = 2
SECONDS = 240.0
TOLD = 60.0
SEED = 1


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A fleet of as many."""
    world = World(tmp_path_factory.mktemp("fleet"))
    world.publish("chat", 1)
    with serving(world, flags(REPLICAS)) as server:
        yield server


def body(server: Server, tokens: int, **fields: object) -> dict[str, object]:
    return {"model": server.model, "prompt": "Say it", "max_tokens": tokens, "ignore_eos": True, **fields}


def test_every_replica_gives_the_same_answer_and_openais_client_streams_it(two: Server) -> None:
    async def all_answers() -> list[str]:
        async with two.client(admin=True) as client:
            names = await complete(client, REPLICAS)
            replies = []
            for name in names:
                one = body(two, 12, temperature=0)
                reply = await client.post(
                    "/v1/completions", json=one, headers={"x-brainstacks-replica": name}
                )
                assert reply.headers["x-brainstacks-replica"] == name
                replies.append(reply.json()["choices"][0]["text"])
            return replies

    texts = asyncio.run(all_answers())
    client = openai.OpenAI(base_url=f"{two.url}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(
        model=two.model, prompt="Say it", max_tokens=12, temperature=0, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert {*texts, "".join(chunk.choices[0].text for chunk in stream)} == {texts[0]}


def test_a_client_that_leaves_is_not_computed_for(two: Server) -> None:
    async def left() -> None:
        async with two.client() as client:
            reply = await ask(client, body(two, 480, stream=True), leave_after=1)
            assert reply.left
            async with asyncio.timeout(TOLD):
                while await counted(client) != {"aborts_total": 1, "running": 0}:
                    await asyncio.sleep(PATIENCE)  # replicas tell their metrics by a clock of their own

    async def counted(client: httpx.AsyncClient) -> dict[str, float]:
        """Of all replicas together."""
        told = await metrics(client)
        return {
            name: sum(value for sample, value in told.items() if sample.startswith(f"brainstacks_{name}{{"))
            for name in ("aborts_total", "running")
        }

    asyncio.run(left())


def test_a_replica_killed_under_load_ends_its_streams_with_an_error_and_no_others(two: Server) -> None:
    async def streams() -> list[Reply]:
        async with two.client(admin=True) as client:
            names = await complete(client, REPLICAS)
            begun = [asyncio.Event() for _ in names]

            async def stream(name: str, first: asyncio.Event) -> Reply:
                async def told(response: object) -> None:
                    first.set()

                async with two.client() as own:
                    own.headers["x-brainstacks-replica"] = name
                    own.event_hooks = {"response": [told]}
                    return await ask(own, body(two, 480, stream=True))

            tasks = [asyncio.create_task(stream(*one)) for one in zip(names, begun, strict=True)]
            await asyncio.gather(*(first.wait() for first in begun))
            assert kill_one(two) == REPLICAS
            replies = await asyncio.gather(*tasks)
            async with asyncio.timeout(TOLD):
                while names <= await replicas_of(client):
                    await asyncio.sleep(PATIENCE)
            return replies

    replies = asyncio.run(streams())
    broken = [reply for reply in replies if reply.error is not None]
    assert [(reply.error or {})["code"] for reply in broken] == ["replica_lost"]
    assert all(reply.done for reply in replies), "each stream ends with [DONE]"
    assert [reply.finished for reply in replies if reply.error is None] == [{0: "length"}] * (REPLICAS - 1)


def test_versions_published_under_load_reach_all_replicas_and_the_successor_of_the_killed_one(
    two: Server,
) -> None:
    outcome = asyncio.run(fleet(two, 6, SECONDS, SEED, print, replicas=REPLICAS, kills=False))
    assert outcome.shown == []
    assert outcome.counts["answered"] > 0
