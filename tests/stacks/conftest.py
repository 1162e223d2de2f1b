"""Fixtures of the stacks' tests: where a registry is, and files to publish or to import."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.stacks.adapters import save_adapter
from tests.stacks.files import write_stack
from tests.stacks.published import REFERENCE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


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
