"""An adapter of PEFT's that is uploaded answers over HTTP as PEFT itself does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from brainstacks.base_model import identify_base
from brainstacks.config import EngineConfig
from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.stacks.peft_import import import_adapter
from brainstacks.stacks.registry import Registry
from server.app import create_app
from server.settings import Settings
from tests.server.conftest import ADMIN
from tests.stacks.adapters import load_adapters, peft_logits, save_adapter

pytestmark = pytest.mark.anyio
IDS = [5, 9, 2, 6, 5, 3, 5, 8, 9, 7]


@pytest.fixture
async def served(tiny_directory: Path, registry: Registry, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine.open(
        base=str(tiny_directory),
        registry=str(tmp_path / "registry"),
        quantization="none",
        device="cpu",
        dtype="float32",
        config=EngineConfig(),
    )
    yield engine
    await engine.close()


async def test_log_probabilities_are_pefts_alone_and_mixed(
    served: AsyncEngine, settings: Settings, tiny_directory: Path, tmp_path: Path
) -> None:
    adapters = {
        "law": save_adapter(tmp_path / "law", seed=1, target_modules=["q_proj", "down_proj"], r=2),
        "math": save_adapter(tmp_path / "math", seed=2, target_modules="all-linear", use_rslora=True),
    }
    base = identify_base(tiny_directory)
    model = load_adapters(adapters)
    model.add_weighted_adapter(["law", "math"], [0.6, 0.9], "mix", combination_type="cat")
    transport = httpx2.ASGITransport(app=create_app(served, settings))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for domain, adapter in adapters.items():
            file = import_adapter(adapter, base, domain, tmp_path / f"{domain}.file", lambda _: None)
            content = (tmp_path / f"{domain}.file").read_bytes()
            reply = await client.put(f"/admin/stacks/{domain}", content=content, headers=ADMIN)
            assert reply.json()["digest"] == file.digest
        asked: dict[str, dict[str, Any]] = {
            "law": {"model": "tiny-llama:law"},
            "mix": {
                "model": "tiny-llama",
                "routing": {"mode": "fixed", "weights": {"law": 0.6, "math": 0.9}},
            },
        }
        for name, body in asked.items():
            model.set_adapter(name)
            theirs = peft_logits(model, torch.tensor([IDS]))[0].log_softmax(-1)
            expected = [float(theirs[place, token]) for place, token in enumerate(IDS[1:])]
            reply = await client.post(
                "/v1/completions", json={"prompt": IDS, "max_tokens": 0, "echo": True, "logprobs": 0, **body}
            )
            ours = reply.json()["choices"][0]["logprobs"]["token_logprobs"]
            assert ours[1:] == pytest.approx(expected, abs=1e-4)
