"""A tiny curriculum: the data of three domains, and the recipe of a run over some of them."""

from __future__ import annotations

import random
from pathlib import Path

from brainstacks.stacks.registry import Registry
from tests.tiny import write_records
from training.recipe.recipe import Recipe, recipe_from

ANSWERS = {"chat": "well hello", "math": "12345678", "noise": ""}


def write_data(directory: Path) -> Path:
    """Prompts of letters or of digits; each domain has one answer to all of them, and one has none."""
    rng = random.Random(0)
    for domain, answer in ANSWERS.items():
        alphabet = "0123456789" if domain == "math" else "abcdefghij" if domain == "chat" else "xyz!?"
        prompts = ["".join(rng.choices(alphabet, k=rng.randint(5, 9))) for _ in range(36)]
        assert len(set(prompts)) == 36
        rows = [(p, answer or "".join(chr(rng.randrange(33, 127)) for _ in range(12))) for p in prompts]
        write_records(directory / domain / "train.jsonl", rows[:28])
        write_records(directory / domain / "validation.jsonl", rows[28:])
    return directory


def recipe(base: Path, *domains: str, steps: int = 6, **changes: object) -> Recipe:
    return recipe_from(
        {
            "base": str(base),
            "quantization": "none",
            "earlier_stacks": "all",
            "data": {"max_tokens": 96, "selection": 12, "forgetting": 4},
            "stack": {"rank": 2, "alpha": 4.0, "experts": 2, "top_k": 1, "dtype": "float32"},
            "round": {
                "steps": steps, "batch_size": 6, "learning_rate": 5e-3, "warmup_steps": 2, "eval_every": 3,
                "checkpoint_every": 2,
            },
            "router": {
                "prompts": 8, "held_out": 4, "max_tokens": 96, "epochs": 3, "batch_size": 4, "hidden_dim": 16,
                "floors": {"chat": 0.2}, "soft_levels": [1.0, 0.5],
            },
            "domains": [{"name": name, "licence": "CC0"} for name in domains or ("chat", "math")],
            **changes,
        }
    )  # fmt: skip


def quiet(line: str) -> None:
    pass


def digests(registry: Registry) -> dict[str, str]:
    return registry.snapshot().serving[0]
