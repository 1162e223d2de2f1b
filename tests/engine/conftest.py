"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args

import pytest

from brainstacks.config import Backend
from tests.engine import driving
from tests.engine.async_driving import Running


@pytest.fixture(scope="module", params=[name for name in get_args(Backend) if name != "auto"])
def each_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once with every backend that computes on a CPU, for the engines of `driving.serve`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driving, "backend", request.param)
        yield


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    made = Running(tmp_path)
    yield made
    await made.engine.close()
