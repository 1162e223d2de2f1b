"""Everything that is measured of a finished registry, and where it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from brainstacks.composed_model import ComposedModel
from brainstacks.stacks.registry import Registry
from training.allocator import keep_freed_memory
from training.data import prepare
from training.evaluation import Evaluation, evaluate, load_served, validation_examples
from training.expert_use import EXPERT_USE, measure_expert_use, save_expert_use
from training.recipe import Recipe
from training.router_analysis import analyse, measure_transfer
from training.run_directory import RunDirectory, atomic_write

TRANSFER_RECORDS = 32
"""Validation records per domain on which single stacks, and the use of experts, are measured."""


def evaluate_run(
    recipe: Recipe,
    data: Path | None,
    registry: Path,
    path: Path,
    console: Console,
    limit: int | None = None,
    oracle_limit: int = 16,
    tasks: Sequence[str] = (),
) -> Evaluation:
    """Measure, show, and write evaluation.json and expert_use.json to the run's directory `path`.

    Args:
        limit: most validation records per domain; None takes all.
        oracle_limit: records per domain on which the oracle is measured.
        tasks: lm-eval tasks to run as well, in modes base, ungated and routed.

    Raises:
        ConfigError: the registry has no stacks or no router, or a domain no validation records.
    """
    keep_freed_memory()
    records = prepare(recipe, data)
    run = RunDirectory(path, {})
    composed, router = load_served(recipe.base, recipe.quantization, Registry(registry))
    tokens = recipe.data.max_tokens
    found = evaluate(
        composed, router, records, limit, oracle_limit, tokens, console.print, search=recipe.router
    )
    found.show(console)
    analysis = analyse(found, list(composed.digests))
    analysis.show(console)
    examples = validation_examples(composed, records, TRANSFER_RECORDS, tokens)
    transfer = measure_transfer(composed, examples)
    transfer.show(console)
    document: dict[str, Any] = {
        **found.to_dict(),
        "stacks": dict(composed.digests),
        "router_analysis": analysis.to_dict(),
        "transfer": transfer.to_dict(),
    }
    if tasks:
        document["lm_eval"] = _harness(recipe, registry, tasks, limit)
        console.print_json(data=document["lm_eval"])
    path.mkdir(parents=True, exist_ok=True)
    atomic_write(run.evaluation, json.dumps(document, indent=2) + "\n")
    use = measure_expert_use(
        composed, Registry(registry), {d: e for d, e in examples.items() if d in composed.digests}
    )
    save_expert_use(path / EXPERT_USE, use)
    return found


def _harness(
    recipe: Recipe, registry: Path, tasks: Sequence[str], limit: int | None
) -> dict[str, dict[str, dict[str, float]]]:
    from training.harness import run_harness

    model = ComposedModel.load(recipe.base, registry, quantization=recipe.quantization)
    return run_harness(model, tasks, limit)
