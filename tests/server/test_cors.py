"""Pages of listed origins may call the inference routes; a preflight needs no key and opens nothing."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.server.conftest import ADMIN, error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

PAGE = "https://chat.example"
KEY = {"Authorization": "Bearer key-one"}


def preflight(origin: str = PAGE, method: str = "POST") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
    }


@pytest.fixture
def options() -> dict[str, Any]:
    return {"api_key": "key-one", "admin_key": "admin-secret", "cors_origin": (PAGE, "http://localhost:3000")}


async def test_a_preflight_needs_no_key_and_runs_nothing(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    reply = await client.options("/v1/chat/completions", headers=preflight())
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "authorization" in reply.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in reply.headers
    assert engine.requests == []


async def test_a_call_still_needs_its_key_and_its_refusal_can_be_read(client: httpx2.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "x"}
    refused = await client.post("/v1/completions", json=body, headers={"Origin": PAGE})
    error_of(refused, 401)
    assert refused.headers["access-control-allow-origin"] == PAGE
    answered = await client.post("/v1/completions", json=body, headers={"Origin": PAGE, **KEY})
    assert answered.status_code == 200
    assert answered.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in answered.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://chat.example.evil", "http://chat.example"]
)
async def test_other_origins_get_no_permission(client: httpx2.AsyncClient, origin: str) -> None:
    refused = await client.options("/v1/models", headers=preflight(origin))
    assert error_of(refused, 400)["code"] == "cors_refused"
    assert "access-control-allow-origin" not in refused.headers
    answered = await client.get("/v1/models", headers={"Origin": origin, **KEY})
    assert "access-control-allow-origin" not in answered.headers


async def test_the_admin_area_stays_closed_to_pages(client: httpx2.AsyncClient) -> None:
    for headers in (preflight(), preflight(method="PUT")):
        refused = await client.options("/admin/stacks/chat", headers=headers)
        error_of(refused, 401)
        assert "access-control-allow-origin" not in refused.headers
    answered = await client.get("/admin/stacks", headers={"Origin": PAGE, **ADMIN})
    assert "access-control-allow-origin" not in answered.headers


class TestByDefault:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"api_key": "key-one"}

    async def test_no_page_of_another_origin_may_call(self, client: httpx2.AsyncClient) -> None:
        error_of(await client.options("/v1/models", headers=preflight()), 401)
        answered = await client.get("/v1/models", headers={"Origin": PAGE, **KEY})
        assert "access-control-allow-origin" not in answered.headers


class TestAnyOrigin:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"cors_origin": "*"}

    async def test_a_star_lets_every_page_call(self, client: httpx2.AsyncClient) -> None:
        reply = await client.options("/v1/models", headers=preflight("https://any.example", "GET"))
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "*"
