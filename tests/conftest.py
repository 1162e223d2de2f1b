"""Fixtures of the whole suite: bases, loaded once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from brainstacks.base_model import BaseModel, load_base
from brainstacks.stacks.registry import Registry
from tests.packaged_server import Server, running
from tests.stacks.s3_server import S3Server, use
from tests.stacks.s3_server import serving as s3_server_of_tests
from tests.tiny import save_base

# One fixed sequence of examples, and no clock: a test passes or fails for what the code does.
settings.register_profile("project", derandomize=True, deadline=None)
settings.load_profile("project")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported

# Processes that test side by side share the cores.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def packaged_base() -> BaseModel:
    """The packaged base in NF4, open to gradients: the one load that every slow test shares."""
    return load_base("packaged:smollm2-135m-instruct", quantization="nf4", device="cpu")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The packaged base and the demo registry, served by a process."""
    with running(tmp_path_factory.mktemp("registry") / "stacks") as each:
        yield each


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, on disk."""
    return save_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture
def tiny_base(tiny_directory: Path) -> BaseModel:
    """The same, loaded afresh: whoever attaches hooks to it disturbs nobody."""
    return load_base(tiny_directory, quantization="none", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with s3_server_of_tests() as each:
        yield each


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server, which the environment names."""
    use(monkeypatch, s3_server.environment())
    return s3_server


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", create=True)
