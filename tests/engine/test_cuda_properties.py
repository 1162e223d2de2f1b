"""Random traffic through the engine on the cuda backend, its kernels interpreted on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brainstacks.engine.runner.cuda_backend import CudaBackend
from tests.engine import driving
from tests.engine.driving import serve
from tests.engine.test_properties import assert_traffic_is_plain

pytestmark = [
    pytest.mark.static_cuda,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for CUDA tensors"),
]


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "backend", "cuda")


@pytest.mark.parametrize(("family", "limits"), [("llama", 0), ("gemma3_text", 1), ("mistral", 3)])
def test_random_traffic_equals_plain_generation(tmp_path: Path, family: str, limits: int) -> None:
    late = ("chat", "math") if limits == 0 else ()
    assert_traffic_is_plain(tmp_path, family, limits, steps=6, longest=4, late=late)


def test_it_is_the_cuda_backend_that_serves(tmp_path: Path) -> None:
    assert isinstance(serve(tmp_path).engine.backend, CudaBackend)
