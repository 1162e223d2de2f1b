"""One app over one fake engine, and the ways to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from server.app import create_app
from server.settings import Settings
from tests.server.fake_engine import FakeEngine

ADMIN = {"Authorization": "Bearer admin-secret"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def options() -> dict[str, Any]:
    """Settings of the app under test; a test class overrides it."""
    return {"admin_key": "admin-secret"}


@pytest.fixture
def settings(options: dict[str, Any], tmp_path: Path) -> Settings:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    return Settings.model_validate({"upload_dir": uploads, **options})


@pytest.fixture
def app(engine: FakeEngine, settings: Settings) -> FastAPI:
    return create_app(engine, settings)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://localhost"
    ) as client:
        yield client


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error object of a refused request, whose shape is checked on the way."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    error: dict[str, Any] = body["error"]
    return error
