from __future__ import annotations

import asyncio
import logging

import httpx2
import pytest
from fastapi import FastAPI

from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("given", ["a", "A-1_b.c", "x" * 128])
async def test_a_sane_request_id_is_kept(client: httpx2.AsyncClient, given: str) -> None:
    assert (await client.get("/health", headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a/b", "é", "a\tb", "a;b"])
async def test_an_odd_request_id_is_replaced(client: httpx2.AsyncClient, given: str) -> None:
    reply = await client.get("/health", headers=[(b"x-request-id", given.encode())])
    assert len(reply.headers["x-request-id"]) == 32
    assert reply.headers["x-request-id"].isalnum()


async def test_the_id_of_a_running_request_is_not_given_twice(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.hold = asyncio.Event()
    body = {"model": "tiny", "prompt": "x"}
    first = asyncio.ensure_future(client.post("/v1/completions", json=body, headers={"x-request-id": "same"}))
    await asyncio.wait_for(engine.reached.wait(), 5)
    engine.hold.set()
    engine.hold = None
    second = await client.post("/v1/completions", json=body, headers={"x-request-id": "same"})
    assert (await first).headers["x-request-id"] == "same"
    assert second.headers["x-request-id"] != "same"
    later = await client.post("/v1/completions", json=body, headers={"x-request-id": "same"})
    assert later.headers["x-request-id"] == "same"


async def test_every_refusal_carries_the_id(client: httpx2.AsyncClient) -> None:
    for method, path in (
        ("GET", "/nope"),
        ("GET", "/admin/stacks"),
        ("PUT", "/health"),
        ("POST", "/v1/route"),
    ):
        reply = await client.request(method, path, headers={"x-request-id": "mine"})
        assert reply.status_code >= 400
        assert reply.headers["x-request-id"] == "mine"


async def test_a_bug_is_a_500_with_the_id_and_a_trace_in_the_log_only(
    client: httpx2.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refuse = RuntimeError("/secret/path")
    body = {"model": "tiny", "prompt": "x"}
    with caplog.at_level(logging.ERROR):
        reply = await client.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
    error = error_of(reply, 500)
    assert error["code"] == "internal_error"
    assert "mine" in error["message"]
    assert "secret" not in reply.text
    assert "mine" in caplog.text
    assert "/secret/path" in caplog.text


async def test_secrets_never_reach_the_log(
    client: httpx2.AsyncClient, app: FastAPI, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refuse = RuntimeError("boom")
    engine.refuse_publish = RuntimeError("boom")
    with caplog.at_level(logging.DEBUG):
        for key in ("admin-secret", "guess-secret"):
            headers = {"Authorization": f"Bearer {key}"}
            await client.post("/v1/completions", json={"model": "tiny", "prompt": "x"}, headers=headers)
            await client.put("/admin/stacks/law", content=b"x", headers=headers)
    assert "boom" in caplog.text
    assert "-secret" not in caplog.text
    assert "-secret" not in repr(app.state.context.settings)
