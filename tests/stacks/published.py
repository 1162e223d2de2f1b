"""The reference fixture in the published .pt layout, and the base that it is for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from brainstacks.base_identity import BaseIdentity

REFERENCE = Path(
    os.environ.get("BRAINSTACKS_REFERENCE_FIXTURE", Path(__file__).parents[1] / "fixtures" / "reference")
)
DIMS = {
    "q_proj": (32, 32),
    "k_proj": (32, 16),
    "v_proj": (32, 16),
    "o_proj": (32, 32),
    "gate_proj": (32, 48),
    "up_proj": (32, 48),
    "down_proj": (48, 32),
}
BASE = BaseIdentity("fixture", "f" * 64, "LlamaForCausalLM", layers=2, dims=DIMS, hidden_size=32)


def read(path: Path) -> dict[str, Any]:
    value = torch.load(path, weights_only=True)
    assert isinstance(value, dict)
    return value
