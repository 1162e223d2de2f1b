"""Fixtures of the stacks' tests: where a registry is, and files to publish or to import."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from brainstacks.stacks.registry import Registry
from tests.stacks.adapters import save_adapter
from tests.stacks.faulty_proxy import FaultyProxy, standing_before
from tests.stacks.files import write_stack
from tests.stacks.places import Bucket, Directory, Place
from tests.stacks.published import REFERENCE
from tests.stacks.s3_server import S3Server, use


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a registry will be; each test runs in both."""
    if request.param == "directory":
        return Directory(tmp_path / "registry")
    return Bucket(request.getfixturevalue("s3"), tmp_path / "caches")


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Bucket:
    return Bucket(s3, tmp_path / "caches")


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What is opened from now on reaches the server through it, and waits for nothing for long."""
    for name, seconds in (("SILENCE", 0.5), ("RETRYING", 2), ("FIRST_PAUSE", 0.01), ("LAST_PAUSE", 0.02)):
        monkeypatch.setattr(f"brainstacks.stacks.bucket_url.{name}", seconds)
    monkeypatch.setattr("brainstacks.stacks.bucket_url.RETRIES", 2)
    with standing_before(s3.url) as each:
        use(monkeypatch, s3.environment(each.url))
        yield each


@pytest.fixture
def placed(place: Place) -> Registry:
    """An empty registry there."""
    return place.open(create=True)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    return write_stack(tmp_path / "chat-0")


@pytest.fixture
def chat2(tmp_path: Path) -> Path:
    return write_stack(tmp_path / "chat-1", seed=1)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of the reference without its base, free to be spoilt."""
    shutil.copytree(REFERENCE, tmp_path / "published", ignore=shutil.ignore_patterns("base", "expected*"))
    for path in (tmp_path / "published").rglob("*"):
        path.chmod(0o755)
    return tmp_path / "published"


@pytest.fixture(scope="session")
def saved_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapters") / "saved", target_modules=["q_proj", "v_proj"])


@pytest.fixture
def adapter(saved_adapter: Path, tmp_path: Path) -> Path:
    """PEFT's, free to be spoilt."""
    shutil.copytree(saved_adapter, tmp_path / "adapter")
    return tmp_path / "adapter"
