"""Hostile 10, 11 and 21: large, encoded, slow and broken-off bodies; large headers."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.raw_asgi import RawRequest, send

pytestmark = pytest.mark.anyio

JSON = ("Content-Type", "application/json")
KEY = ("Authorization", "Bearer admin-secret")
CAP = 4096


@pytest.fixture
def options() -> dict[str, Any]:
    return {
        "admin_key": "admin-secret",
        "max_body_bytes": CAP,
        "max_upload_bytes": 2 * CAP,
        "body_grace": 0.2,
    }


def files_in(settings: Settings) -> list[Path]:
    assert settings.upload_dir is not None
    return list(settings.upload_dir.iterdir())


@pytest.mark.parametrize(
    ("method", "path", "cap"), [("POST", "/v1/completions", CAP), ("PUT", "/admin/stacks/x", 2 * CAP)]
)
async def test_hostile_10_a_declared_size_over_the_cap_is_413_before_a_byte_is_read(
    app: FastAPI, method: str, path: str, cap: int
) -> None:
    request = RawRequest(app, method, path, [JSON, KEY, ("Content-Length", str(cap + 1))])
    await request.finished()  # nothing was fed
    assert request.status == 413
    assert str(cap) in request.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "cap"), [("POST", "/v1/completions", CAP), ("PUT", "/admin/router", 2 * CAP)]
)
async def test_hostile_10_an_undeclared_size_is_cut_off_at_the_cap(
    app: FastAPI, engine: FakeEngine, settings: Settings, method: str, path: str, cap: int
) -> None:
    request = RawRequest(app, method, path, [JSON, KEY, ("Transfer-Encoding", "chunked")])
    for _ in range(3):
        request.feed(b"x" * (cap // 2), more=True)
    await request.finished()  # though the client would have sent more
    assert request.status == 413
    assert request.json()["error"]["code"] == "body_too_large"
    assert engine.uploads == {}
    assert files_in(settings) == []


async def test_a_body_of_just_the_cap_is_taken(app: FastAPI, engine: FakeEngine) -> None:
    request = await send(app, "PUT", "/admin/stacks/x", [KEY], b"x" * (2 * CAP))
    assert request.status == 201
    assert engine.uploads["x"] == b"x" * (2 * CAP)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "identity, gzip", "zstd"])
async def test_hostile_10_an_encoded_body_is_never_unpacked(app: FastAPI, encoding: str) -> None:
    bomb = gzip.compress(b"0" * 1_000_000)
    for method, path in (("POST", "/v1/completions"), ("PUT", "/admin/stacks/x")):
        request = await send(app, method, path, [JSON, KEY, ("Content-Encoding", encoding)], bomb)
        assert request.status == 415
        assert request.json()["error"]["code"] == "unsupported_encoding"


async def test_hostile_10_a_wrong_key_is_told_before_the_size(app: FastAPI) -> None:
    request = RawRequest(app, "PUT", "/admin/stacks/x", [("Content-Length", "999999999")])
    await request.finished()
    assert request.status == 401


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "", "9" * 30, "²"])
async def test_a_content_length_that_is_no_size_is_400(app: FastAPI, length: str) -> None:
    request = await send(app, "POST", "/v1/completions", [JSON, ("Content-Length", length)], b"{}")
    assert request.status == 400


async def test_hostile_11_a_body_that_trickles_is_closed_and_leaves_no_file(
    app: FastAPI, settings: Settings, engine: FakeEngine
) -> None:
    for method, path in (("PUT", "/admin/stacks/x"), ("POST", "/v1/completions")):
        request = RawRequest(app, method, path, [JSON, KEY])
        request.feed(b"{", more=True)
        await request.finished()  # the rest never comes
        assert request.status == 408
        assert request.json()["error"]["code"] == "body_timeout"
    assert files_in(settings) == []
    assert engine.uploads == {}


async def test_hostile_11_leaving_in_the_middle_of_an_upload_leaves_no_file(
    app: FastAPI, settings: Settings, engine: FakeEngine
) -> None:
    request = RawRequest(app, "PUT", "/admin/stacks/x", [KEY])
    request.feed(b"part", more=True)
    request.leave()
    await request.finished()
    assert files_in(settings) == []
    assert engine.uploads == {}


async def test_hostile_21_headers_over_the_cap_are_431(app: FastAPI) -> None:
    request = await send(app, "GET", "/health", [("X-Much", "x" * 1_000_000)])
    assert request.status == 431
    assert request.json()["error"]["code"] == "headers_too_large"
    many = await send(app, "GET", "/health", [(f"X-{i}", "v") for i in range(10_000)])
    assert many.status == 431
