from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from brainstacks.errors import (
    BrainstacksError,
    Conflict,
    IncompatibleArtifact,
    InvalidArtifact,
    StorageFull,
    StorageUnwritable,
)
from server.settings import Settings
from tests.server.conftest import ADMIN, error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

FILE = bytes(range(256)) * 9000  # more than two blocks


@pytest.fixture
async def admin(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    client.headers.update(ADMIN)
    return client


async def test_stacks_are_listed_and_shown_with_the_generation_as_etag(admin: httpx2.AsyncClient) -> None:
    listed = await admin.get("/admin/stacks")
    assert [stack["domain"] for stack in listed.json()["stacks"]] == ["chat", "math"]
    assert listed.json()["generation"] == 7
    assert listed.headers["etag"] == '"7"'
    one = await admin.get("/admin/stacks/chat")
    assert one.json() == listed.json()["stacks"][0]
    assert set(one.json()) >= {
        "version", "versions", "digest", "rounds", "rank", "experts", "bytes", "residency", "pinned",
        "routable", "routed_by", "in_flight", "provenance",
    }  # fmt: skip
    assert error_of(await admin.get("/admin/stacks/other"), 404)["code"] == "domain_not_found"


async def test_an_upload_is_201_then_200_for_the_same_bytes_and_leaves_no_file(
    admin: httpx2.AsyncClient, engine: FakeEngine, settings: Settings
) -> None:
    first = await admin.put("/admin/stacks/law", content=FILE)
    assert first.status_code == 201
    assert set(first.json()) >= {"domain", "version", "digest", "generation", "created", "routable"}
    assert first.json()["generation"] == 8
    assert first.headers["etag"] == '"8"'
    assert engine.uploads["law"] == FILE
    again = await admin.put("/admin/stacks/law", content=FILE)
    assert again.status_code == 200
    assert again.json() == {**first.json(), "created": False}
    assert settings.upload_dir is not None
    assert list(settings.upload_dir.iterdir()) == []
    assert not any(path.exists() for path in engine.upload_paths)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArtifact("The header is 2^63 bytes long"), 400),
        (IncompatibleArtifact("Made for another base"), 409),
        (Conflict("Another writer was first"), 409),
        (StorageFull("The store has no room"), 507),
        (StorageUnwritable("The store is read-only"), 503),
        (RuntimeError("/secret/path"), 500),
    ],
)
async def test_a_refused_upload_is_an_error_and_leaves_no_file(
    admin: httpx2.AsyncClient,
    app: FastAPI,
    engine: FakeEngine,
    settings: Settings,
    error: Exception,
    status: int,
) -> None:
    engine.refuse_publish = error
    for path in ("/admin/stacks/law", "/admin/router"):
        shown = error_of(await admin.put(path, content=FILE), status)
        assert "secret" not in shown["message"]
    assert settings.upload_dir is not None
    assert list(settings.upload_dir.iterdir()) == []
    outcome = error.code if isinstance(error, BrainstacksError) else "broken_off"
    count = app.state.context.metrics.registry.get_sample_value(
        "brainstacks_uploads_total", {"outcome": str(outcome)}
    )
    assert count == 2


async def test_an_upload_directory_that_is_gone_is_503_and_says_so(
    admin: httpx2.AsyncClient, settings: Settings
) -> None:
    assert settings.upload_dir is not None
    settings.upload_dir.rmdir()
    shown = error_of(await admin.put("/admin/stacks/law", content=FILE), 503)
    assert shown["code"] == "storage_unwritable"
    assert "--upload-dir" in shown["message"]
    assert str(settings.upload_dir) not in shown["message"]


@pytest.mark.parametrize("path", ["/admin/stacks/law", "/admin/router"])
async def test_of_uploads_that_overlap_the_one_that_arrives_whole_first_wins(
    admin: httpx2.AsyncClient, path: str
) -> None:
    """Without If-Match: what counts is what was stored before the first byte of the body was asked for."""
    begun = asyncio.Event()
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await go_on.wait()
        yield b"slow"

    late = asyncio.create_task(admin.put(path, content=slow()))
    await begun.wait()
    assert (await admin.put(path, content=b"fast")).status_code == 201
    go_on.set()
    assert error_of(await late, 409)["code"] == "conflict"
    assert (await admin.put(path, content=b"later")).status_code == 201


async def test_a_full_disk_while_receiving_is_507(
    admin: httpx2.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.uploads._write", full)
    assert error_of(await admin.put("/admin/stacks/law", content=FILE), 507)["code"] == "storage_full"
    assert engine.upload_paths == []


async def test_an_empty_upload_is_400(admin: httpx2.AsyncClient, engine: FakeEngine) -> None:
    for path in ("/admin/stacks/law", "/admin/router"):
        assert error_of(await admin.put(path, content=b""), 400)["code"] == "invalid_artifact"
    assert engine.upload_paths == []


@pytest.mark.parametrize(
    "name",
    ["base", "ungated", "routed", "fixed", "Chat", "a" * 65, "a" * 5000, "chаt", "a b", "-a", "a..b", "a:b"],
)
async def test_hostile_9_names_that_cannot_be_a_domain_are_400(
    admin: httpx2.AsyncClient, engine: FakeEngine, name: str
) -> None:
    error_of(await admin.put(f"/admin/stacks/{name}", content=FILE), 400)
    assert engine.upload_paths == []


async def test_hostile_28_a_path_or_url_is_no_source_of_a_stack(
    admin: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    for body in ({"path": "/etc/passwd"}, {"url": "http://localhost"}):
        reply = await admin.put("/admin/stacks/law", json=body)
        assert reply.status_code == 201  # the fake checks nothing: the body itself is the file
        assert engine.uploads["law"] == reply.request.content


@pytest.mark.parametrize("if_match", ["7", '"7"', " 7 ", "*"])
async def test_a_matching_generation_passes(
    admin: httpx2.AsyncClient, engine: FakeEngine, if_match: str
) -> None:
    reply = await admin.put("/admin/stacks/law", content=FILE, headers={"If-Match": if_match})
    assert reply.status_code == 201


async def test_a_stale_generation_is_412_on_every_change(
    admin: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    stale = {"If-Match": '"6"'}
    replies = [
        await admin.put("/admin/stacks/law", content=FILE, headers=stale),
        await admin.put("/admin/router", content=FILE, headers=stale),
        await admin.post("/admin/stacks/chat/activate", json={"version": 1}, headers=stale),
        await admin.post("/admin/router/activate", json={"version": 1}, headers=stale),
        await admin.delete("/admin/stacks/chat", headers=stale),
    ]
    assert [error_of(reply, 412)["code"] for reply in replies] == ["stale_generation"] * 5
    assert engine.names == ["chat", "math"]
    assert engine.uploads == {}


@pytest.mark.parametrize("if_match", ["", "x", '"7', "7, 8", "-1", "7.0", "1" * 30, "²", 'W/"7"'])
async def test_a_generation_that_is_none_is_400(
    admin: httpx2.AsyncClient, engine: FakeEngine, if_match: str
) -> None:
    reply = await admin.delete("/admin/stacks/chat", headers=[(b"if-match", if_match.encode("latin-1"))])
    assert error_of(reply, 400)["param"] == "If-Match"
    assert engine.names == ["chat", "math"]


async def test_the_router_is_shown_and_published(admin: httpx2.AsyncClient, engine: FakeEngine) -> None:
    assert (await admin.get("/admin/router")).json()["domains"] == ["chat", "math"]
    reply = await admin.put("/admin/router", content=FILE)
    assert reply.status_code == 201
    assert reply.json()["name"] == "router"
    assert engine.uploads["router"] == FILE
    engine.names = []
    assert "PUT /admin/router" in error_of(await admin.get("/admin/router"), 404)["message"]


async def test_the_registry_is_shown_and_reloaded(admin: httpx2.AsyncClient) -> None:
    registry = (await admin.get("/admin/registry")).json()
    assert registry["generation"] == 7
    assert list(registry["domains"]) == ["chat", "math"]
    assert (await admin.post("/admin/registry/reload")).json() == {"generation": 7}


async def test_recent_requests_are_filtered_newest_first(admin: httpx2.AsyncClient) -> None:
    for name in ("tiny:chat", "tiny:math", "tiny:base"):
        body = {"model": name, "prompt": "x"}
        await admin.post("/v1/completions", json=body, headers={"x-request-id": name.replace(":", "-")})

    async def ids(query: str) -> list[str]:
        reply = await admin.get(f"/admin/requests{query}")
        return [record["request_id"] for record in reply.json()["requests"]]

    assert await ids("") == ["tiny-base", "tiny-math", "tiny-chat"]
    assert await ids("?domain=chat&active=true") == ["tiny-chat"]
    assert await ids("?domain=other") == []
    error_of(await admin.get("/admin/requests?limit=5"), 400)
    error_of(await admin.get("/admin/requests?active=perhaps"), 400)


async def test_a_stack_moves_between_the_tiers_and_each_answer_is_its_status(
    admin: httpx2.AsyncClient,
) -> None:
    async def move(verb: str) -> tuple[str, bool]:
        reply = await admin.post(f"/admin/stacks/chat/{verb}")
        assert reply.status_code == 200
        assert reply.headers["etag"] == '"7"'
        assert reply.json() == (await admin.get("/admin/stacks/chat")).json()
        return reply.json()["residency"], reply.json()["pinned"]

    assert await move("evict") == ("host", False)
    assert await move("pin") == ("device", True)
    assert await move("unpin") == ("device", False)
    assert await move("evict") == ("host", False)
    assert await move("load") == ("device", False)


@pytest.mark.parametrize("verb", ["pin", "unpin", "evict", "load"])
async def test_only_a_known_domain_can_be_moved(admin: httpx2.AsyncClient, verb: str) -> None:
    reply = await admin.post(f"/admin/stacks/other/{verb}")
    assert error_of(reply, 404)["code"] == "domain_not_found"
    error_of(await admin.post(f"/admin/stacks/Not-a-name/{verb}"), 400)


async def test_a_stack_in_use_or_pinned_is_not_evicted(admin: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.used.add("chat")
    engine.pinned.add("math")
    for domain in ("chat", "math"):
        assert error_of(await admin.post(f"/admin/stacks/{domain}/evict"), 409)["code"] == "conflict"
    assert set(engine.tiers.values()) == {"device"}


async def test_a_stack_published_while_a_stream_runs_leaves_it_alone(
    admin: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.hold = asyncio.Event()
    running = asyncio.ensure_future(admin.post("/v1/completions", json={"model": "tiny:chat", "prompt": "x"}))
    await asyncio.wait_for(engine.reached.wait(), 5)
    assert (await admin.put("/admin/stacks/chat", content=FILE)).status_code == 201
    engine.hold.set()
    assert (await running).json()["routing"]["generation"] == 7
