"""Experiments that a tiny base runs in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.experiments.settings import Settings
from training.recipe.settings import RouterRecipe, StackRecipe


def settings_of(base: Path, **changes: Any) -> Settings:
    router = RouterRecipe(
        prompts=3, held_out=2, soft_levels=(0.5,), epochs=2, batch_size=3, hidden_dim=8, sequence_length=32
    )
    defaults: dict[str, Any] = {
        "base": str(base),
        "quantization": "none",
        "domains": ("chat", "math"),
        "long_domains": ("math",),
        "seeds": (0,),
        "steps": 3,
        "batch_size": 2,
        "learning_rate": 5e-3,
        "warmup_steps": 1,
        "eval_every": 3,
        "max_tokens": 96,
        "selection": 4,
        "validation": 3,
        "oracle": 2,
        "stack": StackRecipe(rank=1, experts=3, top_k=2, dtype="float32"),
        "directions": 2,
        "router": router,
    }
    return Settings(**{**defaults, **changes})
