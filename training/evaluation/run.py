"""Everything that is measured of a finished registry, and where it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from brainstacks.base_model import BaseModel
from brainstacks.composed_model import ComposedModel
from brainstacks.durable import atomic_write
from brainstacks.stacks.registry import Registry
from training.curriculum.forgetting import ForgettingMatrix
from training.data.domains import DomainData, prepare
from training.evaluation.evaluation import Evaluation
from training.evaluation.expert_use import measure_expert_use, save_expert_use
from training.evaluation.router import analyse, measure_transfer
from training.evaluation.validation import evaluate, load_served, validation_examples
from training.recipe.recipe import Recipe
from training.rounds.compute import load_to_measure
from training.rounds.device import joined
from training.runs.directory import RunDirectory
from training.runs.processes import Processes
from training.runs.provenance import data_identity
from training.runs.stored import read_as

TRANSFER_RECORDS = 32
"""Validation records per domain on which single stacks, and the use of experts, are measured."""


def evaluate_run(
    recipe: Recipe,
    data: Path | None,
    registry: str | Path,
    path: Path,
    console: Console,
    limit: int | None = None,
    oracle_limit: int = 16,
    tasks: Sequence[str] = (),
    chat: bool = True,
    device: str = "auto",
) -> Evaluation:
    """Measure, show, and write evaluation.json and expert_use.json to the run's directory `path`.

    Args:
        data: directory of the recipe's local records; None where it names its sources itself.
        registry: directory or URL whose active stacks and router are measured.
        console: what is shown goes here.
        limit: most validation records per domain; None takes all.
        oracle_limit: records per domain on which the oracle is measured.
        tasks: lm-eval tasks to run as well, in modes base, ungated and routed; in one process.
        chat: put their prompts into the base's chat template.
        device: see `training.rounds.device.joined`.

    Raises:
        ConfigError: the registry has no stacks or no router, or a domain no validation records; the
            run is going on, or it trained on other splits; lm-eval has no such task; `chat`, and
            the base has no chat template.
        StorageFull: no room for what was measured.
    """
    if tasks:  # where they cannot be run, nothing is measured for nothing
        from training.evaluation.harness import check_chat, check_tasks

        check_tasks(tasks)
    run, served = RunDirectory(path), Registry(registry)
    with ExitStack() as resources:
        with joined(device) as processes:
            if not processes.is_first:
                console = Console(quiet=True)
            processes.on_first(lambda: resources.enter_context(run))
            records = prepare(recipe, data)
            processes.check_same("data", data_identity(records))
            processes.on_first(lambda: run.check_splits(recipe.data, records))
            base = load_to_measure(recipe, processes.first(run.compute), console.print, processes)
            if tasks and chat:
                check_chat(base)
            found, document = _measured(
                recipe, base, served, records, run, console, limit, oracle_limit, processes
            )
        if tasks and processes.is_first:  # these take long, and may fail: what is measured is written
            document["lm_eval"] = _harness(base, served, tasks, limit, chat)
            console.print_json(data=document["lm_eval"])
            _write(run, document)
    return found


def _measured(
    recipe: Recipe,
    base: BaseModel,
    registry: Registry,
    records: Mapping[str, DomainData],
    run: RunDirectory,
    console: Console,
    limit: int | None,
    oracle_limit: int,
    processes: Processes,
) -> tuple[Evaluation, dict[str, Any]]:
    """All but lm-eval's tasks, shown and written; and what was written. `base` is left without hooks."""
    stacked, router = load_served(base, registry, processes)
    serving = registry.snapshot().serving
    processes.check_same("stacks or router", (dict(stacked.digests), serving[1]))
    forgetting = processes.first(lambda: _forgetting(run, stacked.digests, console))
    tokens = recipe.data.max_tokens
    found = evaluate(
        stacked,
        router,
        records,
        limit,
        oracle_limit,
        router_digest=serving[1],
        max_tokens=tokens,
        search=recipe.router,
        report=console.print,
    )
    found.show(console)
    analysis = analyse(found)
    analysis.show(console)
    few = TRANSFER_RECORDS if limit is None else min(limit, TRANSFER_RECORDS)
    examples = validation_examples(stacked, records, few, tokens)
    transfer = measure_transfer(stacked, examples)
    transfer.show(console)
    document: dict[str, Any] = {
        **found.to_dict(),
        "compute": base.dtype_name,
        "router_analysis": analysis.to_dict(),
        "transfer": transfer.to_dict(),
    }
    if forgetting is not None:
        forgetting.show(console)
        document["forgetting"] = forgetting.to_dict()
    processes.on_first(lambda: _write(run, document))
    use = measure_expert_use(stacked, registry, {d: e for d, e in examples.items() if d in stacked.digests})
    processes.on_first(lambda: save_expert_use(run.expert_use, use))
    stacked.hooks.detach()
    return found, document


def _forgetting(run: RunDirectory, served: Mapping[str, str], console: Console) -> ForgettingMatrix | None:
    """The matrix of the run, where it is of stacks that are served."""
    document = read_as(
        run.forgetting, lambda found: (found["stacks"].items(), ForgettingMatrix.from_dict(found))
    )
    if document is None:
        return None
    stacks, matrix = document
    if not stacks <= served.items():
        console.print(f"{run.forgetting.name} is of other stacks than the registry serves, and is left out")
        return None
    return matrix


def _write(run: RunDirectory, document: dict[str, Any]) -> None:
    atomic_write(run.evaluation, json.dumps(document, indent=2) + "\n")


def _harness(
    base: BaseModel, registry: Registry, tasks: Sequence[str], limit: int | None, chat: bool
) -> dict[str, Any]:
    """What was asked of lm-eval, and `results`: mode -> task -> metric -> value."""
    from training.evaluation.harness import run_harness

    results = run_harness(ComposedModel.from_base(base, registry), tasks, limit, chat=chat)
    return {"chat_template": chat, "limit": limit, "results": results}
