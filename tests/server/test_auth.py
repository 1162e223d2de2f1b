"""Hostile 27: every route, every wrong key, every way to write a path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi import FastAPI

from server.auth import classify
from tests.server.fake_engine import FakeEngine
from tests.server.raw_asgi import send

pytestmark = pytest.mark.anyio

OPEN = {"/", "/health", "/ping", "/ready", "/metrics", "/version", "/docs", "/openapi.json"}

DISGUISES = [
    "//admin/stacks",
    "///admin/stacks",
    "/admin//stacks",
    "/./admin/stacks",
    "/x/../admin/stacks",
    "/v1/../admin/stacks",
    "/v1/%2e%2e/admin/stacks",
    "/v1/..%2fadmin/stacks",
    "/%2fadmin/stacks",
    "/admin%2fstacks",
    "/admin%2Fstacks",
    "/admin%252fstacks",
    "/%61dmin/stacks",
    "/%2561dmin/stacks",
    "/admin/../admin/stacks",
    "/admin/%2e/stacks",
    "/admin/",
    "/admin",
    "/admin;x=1/stacks",
    "/admin\\stacks",
    "/admin%5cstacks",
    "\\admin\\stacks",
    "/ADMIN/stacks",
    "/Admin/stacks",
    "/admin./stacks",
    "/admin%20/stacks",
    "/admin/stacks/",
    "/admin%00/stacks",
    "/inspector/../admin/stacks",
    "/inspector/%2e%2e/admin/stacks",
    "http://evil/admin/stacks",
    "/health/../admin/stacks",
    "/openapi.json/../admin/stacks",
]


@pytest.fixture
def options() -> dict[str, Any]:
    return {"api_key": ("key-one", "key-two"), "admin_key": "admin-secret"}


def bearer(key: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {key}")]


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of every documented route, its parameters filled in."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), re.sub(r"\{[^}]*\}", "chat", path)


async def test_every_route_but_the_open_ones_wants_a_key(app: FastAPI) -> None:
    seen = set()
    for method, path in routes_of(app):
        seen.add(path)
        request = await send(app, method, path)
        if path in OPEN:
            assert request.status in (200, 503)
        else:
            assert request.status == 401, (method, path)
            assert request.json()["error"]["code"] == "invalid_api_key"
    assert {"/v1/completions", "/v1/models", "/tokenize", "/admin/stacks", "/admin/router", "/health"} <= seen


async def test_the_pages_of_the_operator_are_open(app: FastAPI) -> None:
    for path in OPEN:
        assert (await send(app, "GET", path)).status == 200


async def test_keys_open_their_own_area_only(app: FastAPI) -> None:
    for method, path in routes_of(app):
        if path in OPEN:
            continue
        right, wrong = (
            ("admin-secret", "key-one") if path.startswith("/admin") else ("key-two", "admin-secret")
        )
        assert (await send(app, method, path, bearer(right))).status != 401, (method, path)
        assert (await send(app, method, path, bearer(wrong))).status == 401, (method, path)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(""),
        bearer("wrong"),
        bearer("key-on"),
        bearer("key-onee"),
        bearer("KEY-ONE"),
        bearer("kéy"),
        [("Authorization", "key-one")],
        [("Authorization", "Basic key-one")],
        [("Authorization", "Bearer")],
        [*bearer("key-one"), *bearer("wrong")],
        [*bearer("wrong"), *bearer("key-one")],
        [("X-API-Key", "key-one")],
        [("Host", "localhost"), ("X-Original-URL", "/health"), ("X-Forwarded-For", "127.0.0.1")],
        [("Host", "admin"), ("X-HTTP-Method-Override", "GET")],
    ],
)
async def test_wrong_or_missing_keys_are_401_with_a_challenge(
    app: FastAPI, headers: list[tuple[str, str]]
) -> None:
    for path in ("/v1/models", "/admin/stacks"):
        request = await send(app, "GET", path, headers)
        assert request.status == 401
        assert (b"www-authenticate", b"Bearer") in request.sent[0]["headers"]
        assert b"key-one" not in request.body
        assert b"admin-secret" not in request.body


async def test_every_configured_key_opens_and_the_scheme_is_case_insensitive(app: FastAPI) -> None:
    for key in ("key-one", "key-two"):
        assert (await send(app, "GET", "/v1/models", bearer(key))).status == 200
    assert (await send(app, "GET", "/v1/models", [("authorization", "bearer key-one")])).status == 200


@pytest.mark.parametrize("path", DISGUISES)
async def test_no_disguise_of_an_admin_path_passes_without_the_admin_key(app: FastAPI, path: str) -> None:
    for headers in ([], bearer("key-one"), [*bearer("key-one"), ("Host", "localhost")]):
        request = await send(app, "GET", path, headers)
        assert request.status == 401, request.body
        assert b"digest" not in request.body


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1//models", "/x/../v1/models", "/%76%31/models", "/v1%2fmodels"]
)
async def test_no_disguise_of_an_inference_path_passes_without_a_key(app: FastAPI, path: str) -> None:
    assert (await send(app, "GET", path)).status == 401


@pytest.mark.parametrize(
    "path",
    ["/admin/stacks/..%2fx", "/admin/stacks/%2e%2e", "/admin/stacks/%2fetc%2fpasswd", "/admin/stacks/a%00b",
     "/admin//stacks", "/admin/stacks/a%5cb", "/admin/stacks/%252e%252e"],
)  # fmt: skip
async def test_a_crooked_admin_path_is_400_even_with_the_key(
    app: FastAPI, engine: FakeEngine, path: str
) -> None:
    request = await send(app, "PUT", path, bearer("admin-secret"), b"file")
    assert request.status == 400
    assert request.json()["error"]["code"] == "invalid_path"
    assert engine.uploads == {}


class TestNoAdminKey:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {}

    async def test_every_admin_route_is_403_and_says_how_to_open_it(self, app: FastAPI) -> None:
        paths = [(method, path) for method, path in routes_of(app) if path.startswith("/admin")]
        assert len(paths) >= 10
        for method, path in [*paths, *[("GET", disguise) for disguise in DISGUISES]]:
            for headers in ([], bearer(""), bearer("None"), bearer("anything")):
                request = await send(app, method, path, headers)
                assert request.status == 403, (method, path)
                assert "BRAINSTACKS_ADMIN_KEY" in request.json()["error"]["message"]

    async def test_without_api_keys_inference_is_open(self, app: FastAPI) -> None:
        assert (await send(app, "GET", "/v1/models")).status == 200


@pytest.mark.parametrize(
    ("raw_path", "area"),
    [
        ("/", "open"),
        ("/health", "open"),
        ("/nope", "open"),
        ("/administrator", "open"),
        ("/v1/models", "inference"),
        ("/v1/routing/admin", "inference"),
        ("/v1/models/tiny:admin", "inference"),
        ("/tokenize", "inference"),
        ("/admin", "admin"),
        ("/admin/stacks/v1", "admin"),
        ("/admin/requests", "admin"),
    ],
)
def test_plain_paths_belong_to_their_first_segment(raw_path: str, area: str) -> None:
    assert classify(raw_path, unquote(raw_path))[0] == area


def test_a_server_that_decodes_differently_cannot_open_the_admin_area() -> None:
    assert classify("/health", "/admin/stacks")[0] == "admin"
    assert classify("/admin/stacks", "/health")[0] == "admin"
