"""HEAD and a trailing slash reach the route that is meant, and no area that was closed."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from tests.server.raw_asgi import send
from tests.server.test_auth import DISGUISES, OPEN, bearer

pytestmark = pytest.mark.anyio


@pytest.fixture
def options() -> dict[str, Any]:
    return {"api_key": "key-one", "admin_key": "admin-secret"}


async def test_head_is_get_without_its_body(app: FastAPI) -> None:
    for path in (*OPEN, "/v1/models", "/v1/models/tiny", "/tokenizer_info", "/inspector/inspector.js"):
        got = await send(app, "GET", path, bearer("key-one"))
        head = await send(app, "HEAD", path, bearer("key-one"))
        assert (got.status, head.status, head.body) == (200, 200, b""), path
        kinds = [dict(one.sent[0]["headers"])[b"content-type"] for one in (got, head)]
        assert kinds[0] == kinds[1]
    assert (await send(app, "HEAD", "/v1/completions", bearer("key-one"))).status == 405
    assert (await send(app, "HEAD", "/nope")).status == 404
    refused = await send(app, "POST", "/health")
    assert set(dict(refused.sent[0]["headers"])[b"allow"].decode().split(", ")) == {"GET", "HEAD"}


async def test_a_trailing_slash_is_the_same_route_without_a_redirect(app: FastAPI) -> None:
    for path in ("/health", "/ping", "/docs", "/v1/models", "/v1/models/tiny", "/tokenizer_info"):
        assert (await send(app, "GET", f"{path}/", bearer("key-one"))).status == 200, path
    assert (await send(app, "GET", "/admin/stacks/chat/", bearer("admin-secret"))).status == 200
    body = b'{"model": "tiny", "prompt": "x"}'
    headers = [*bearer("key-one"), ("Content-Type", "application/json")]
    assert (await send(app, "POST", "/v1/completions/", headers, body)).status == 200


@pytest.mark.parametrize("path", ["/health//", "//", "/health%2f", "/v1/models//", "/v1/models%2f"])
async def test_two_slashes_and_encoded_ones_are_other_paths(app: FastAPI, path: str) -> None:
    assert (await send(app, "GET", path, bearer("key-one"))).status == 404


@pytest.mark.parametrize("path", [f"{path}/" for path in DISGUISES])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_spelling_of_an_admin_path_passes_without_the_admin_key(
    app: FastAPI, method: str, path: str
) -> None:
    for headers in ([], bearer("key-one")):
        assert (await send(app, method, path, headers)).status == 401


async def test_a_slash_or_head_opens_no_inference_route_without_a_key(app: FastAPI) -> None:
    for method, path in (("GET", "/v1/models/"), ("HEAD", "/v1/models"), ("GET", "/tokenizer_info/")):
        assert (await send(app, method, path)).status == 401
