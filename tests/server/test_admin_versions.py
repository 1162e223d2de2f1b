"""Versions of stacks and routers over HTTP: activated, brought back, taken out."""

from __future__ import annotations

import base64
import hashlib

import httpx2
import pytest

from tests.server.conftest import ADMIN, error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

FILE = bytes(range(256)) * 9000  # more than two blocks


@pytest.fixture
async def admin(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    client.headers.update(ADMIN)
    return client


async def test_activate_takes_a_version(admin: httpx2.AsyncClient) -> None:
    reply = await admin.post("/admin/stacks/chat/activate", json={"version": 1})
    assert reply.status_code == 200
    assert reply.json()["version"] == 1
    assert error_of(await admin.post("/admin/stacks/chat/activate", json={"version": 2}), 404)
    for body in ({}, {"version": "1"}, {"version": 0}, {"version": True}, {"version": 1, "x": 1}):
        error_of(await admin.post("/admin/stacks/chat/activate", json=body), 400)


async def test_a_router_is_rolled_back_as_a_stack_is(admin: httpx2.AsyncClient) -> None:
    reply = await admin.post("/admin/router/activate", json={"version": 1})
    assert reply.status_code == 200
    assert (reply.json()["name"], reply.json()["version"]) == ("router", 1)
    shown = error_of(await admin.post("/admin/router/activate", json={"version": 2}), 404)
    assert shown["code"] == "version_not_found"
    for body in ({}, {"version": 0}, {"version": 1, "x": 1}):
        error_of(await admin.post("/admin/router/activate", json=body), 400)


@pytest.mark.parametrize(("name", "path"), [("chat", "/admin/stacks/chat"), ("router", "/admin/router")])
async def test_a_published_file_comes_back_as_it_went_with_its_digest(
    admin: httpx2.AsyncClient, engine: FakeEngine, name: str, path: str
) -> None:
    await admin.put(path, content=FILE)
    reply = await admin.get(f"{path}/versions/1/file")
    assert reply.content == FILE
    digest = base64.b64encode(hashlib.sha256(FILE).digest()).decode()
    assert reply.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert reply.headers["content-length"] == str(len(FILE))
    assert reply.headers["content-disposition"] == f'attachment; filename="{name}-1.safetensors"'
    assert reply.headers["etag"] == '"8"'
    assert engine.opened is not None
    assert engine.opened.closed
    assert (await admin.head(f"{path}/versions/1/file")).content == b""
    assert error_of(await admin.get(f"{path}/versions/2/file"), 404)["code"] == "version_not_found"
    for version in ("0", "-1", "x", "1e9", "9" * 30):
        error_of(await admin.get(f"{path}/versions/{version}/file"), 400)
    error_of(await admin.get("/admin/stacks/other/versions/1/file"), 404)


async def test_delete_stops_serving_and_purges_only_when_asked(
    admin: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    reply = await admin.delete("/admin/stacks/chat")
    assert reply.json()["purged"] is False
    assert (await admin.delete("/admin/stacks/math?purge=true")).json()["purged"] is True
    assert engine.names == []
    assert error_of(await admin.delete("/admin/stacks/chat"), 404)["code"] == "domain_not_found"
    for query in ("purge=maybe", "prune=true"):
        assert (
            error_of(await admin.delete(f"/admin/stacks/chat?{query}"), 400)["param"] == query.split("=")[0]
        )
