"""A foreign page whose name leads here (DNS rebinding) gets no answer."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from server.hosts import allowed_hosts
from server.settings import Settings
from tests.server.raw_asgi import send


@pytest.mark.parametrize(
    ("options", "keyed", "hosts"),
    [
        ({}, False, {"localhost", "127.0.0.1", "::1"}),
        ({"host": "::1"}, False, {"localhost", "127.0.0.1", "::1"}),
        ({"host": "127.0.0.9"}, False, {"localhost", "127.0.0.1", "::1", "127.0.0.9"}),
        ({}, True, None),
        ({"host": "0.0.0.0"}, False, None),
        ({"allowed_host": ("*",)}, False, None),
        ({"allowed_host": "a.example,B.example."}, True, {"a.example", "b.example"}),
    ],
)
def test_which_names_are_answered(options: dict[str, Any], keyed: bool, hosts: set[str] | None) -> None:
    assert allowed_hosts(Settings.model_validate(options), keyed) == hosts


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("localhost.", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
async def test_a_keyless_server_on_loopback_answers_to_its_own_names_alone(
    app: FastAPI, host: str, answered: bool
) -> None:
    for path in ("/", "/v1/models", "/health", "/metrics", "/inspector/inspector.js"):
        request = await send(app, "GET", path, [("Host", host)])
        assert request.status == (200 if answered else 403), path
        if not answered:
            assert request.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.anyio
class TestKeyed:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"api_key": (SecretStr("one"),)}

    async def test_with_keys_every_name_is_answered(self, app: FastAPI) -> None:
        assert (await send(app, "GET", "/health", [("Host", "any.example")])).status == 200
