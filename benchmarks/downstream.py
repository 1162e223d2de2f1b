"""Downstream tasks that people know, through lm-eval, on documents that are at hand: the base, all stacks
ungated, routed, and the task's own stack alone.

    python -m benchmarks.downstream --data DATA

What is measured of a task in a mode is kept under `--run`, and a command that was stopped goes on there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, machine, markdown_table, write_results
from benchmarks.instruments.timing import Progress, say
from brainstacks.composed_model import ComposedModel
from brainstacks.durable import atomic_write
from brainstacks.errors import ConfigError
from brainstacks.stacks.registry import Registry
from training.evaluation.downstream import Downstream, TaskScores
from training.evaluation.harness import MODES, ComposedLM, Mode, check_chat, document_scores
from training.evaluation.known_tasks import TASKS
from training.evaluation.local_tasks import (
    Documents,
    LocalTask,
    Passes,
    documents_of,
    harness_task,
    wanted,
)
from training.reinforce.sandbox import Sandbox
from training.runs.stored import read_json

NAME = "downstream"
OWN: Mode = "own"
FORMAT = 2
"""Of what is kept; raised when the same facts would give other scores."""


@dataclass(frozen=True)
class Measurement:
    """One task in one mode.

    Attributes:
        facts: everything that decides its scores, as JSON values.
    """

    task: LocalTask
    documents: Documents
    mode: Mode
    facts: Mapping[str, Any]

    def file(self, run: Path) -> Path:
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        return run / f"{self.task.name}-{self.mode}-{digest[:20]}.json"


def planned(
    tasks: Mapping[LocalTask, Documents],
    model: ComposedModel,
    stacks: Mapping[str, str],
    router: str | None,
    modes: tuple[Mode, ...],
    chat: bool,
) -> list[Measurement]:
    """Task by task, each in its modes; `own` where there is a stack of the task's domain.

    Args:
        stacks, router: digests of what `model` serves.
    """
    found = []
    for task, documents in tasks.items():
        applied: dict[Mode, Any] = {"base": {}, "ungated": stacks, "routed": [stacks, router]}
        if task.domain in stacks:
            applied[OWN] = {task.domain: stacks[task.domain]}
        for mode in (mode for mode in modes if mode in applied):
            facts = {
                "format": FORMAT,
                "task": repr([task.config, task.metric_options]),
                "documents": documents.rows,
                "mode": [mode, applied[mode]],
                "base": [model.base.identity.fingerprint, model.base.quantization, model.base.dtype_name],
                "chat": chat,
            }
            found.append(Measurement(task, documents, mode, facts))
    return found


def measure(
    plan: list[Measurement], run: Path, score: Callable[[Measurement], list[float]]
) -> dict[str, dict[str, list[float]]]:
    """Task -> mode -> score of each document; only what is not kept in `run` is measured."""
    run.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {}
    kept = [m for m in plan if m.file(run).is_file()]
    if kept:
        say(f"  {len(kept)} of {len(plan)} are kept in {run.name}")
    progress = Progress(len(plan) - len(kept))
    for one in plan:
        scores = read_json(one.file(run))
        if scores is None:
            scores = score(one)
            atomic_write(one.file(run), json.dumps(scores) + "\n")
            progress.done(f"{one.task.name}, {one.mode}: {sum(scores):g} of {len(scores)}")
        found.setdefault(one.task.name, {})[one.mode] = scores
    return found


def _constant(documents: Documents, task: LocalTask) -> float | None:
    if "doc_to_choice" not in task.config:
        return None
    return max(Counter(row["answer"] for row in documents.rows).values()) / len(documents.rows)


def _at_hand(
    names: list[str], data: Path, most: int | None, sandbox: Sandbox
) -> tuple[dict[LocalTask, Documents], dict[str, str]]:
    """(tasks that can be measured, with their documents; why others cannot)."""
    found: dict[LocalTask, Documents] = {}
    left_out: dict[str, str] = {}
    shut_in = sandbox.problem() if any(TASKS[name].runs_code for name in names) else None
    for task in (TASKS[name] for name in names):
        documents = documents_of(task, data)
        if documents is None:
            left_out[task.name] = f"no documents: it needs {wanted(task)} in --data"
        elif task.runs_code and shut_in is not None:
            left_out[task.name] = shut_in
        else:
            found[task] = documents.first(most)
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    if not found:
        raise ConfigError(f"no task is left to measure; {'; '.join(left_out.values())}")
    return found, left_out


def main(
    data: Annotated[
        Path,
        typer.Option(help="<task>.jsonl, or <domain>/validation.jsonl.", exists=True, file_okay=False),
    ],
    tasks: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(TASKS),
    modes: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join((*MODES, OWN)),
    documents: Annotated[
        int | None, typer.Option(min=1, help="The first ones of each task, at most.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Ask in the base's chat template, or plainly.")
    ] = True,
    registry: Annotated[Path, typer.Option(help="Its active stacks and router.")] = options.DEMO_REGISTRY,
    run: Annotated[Path, typer.Option(help="What is measured is kept here.")] = Path("runs/downstream"),
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    output: options.Output = RESULTS,
) -> None:
    """GSM8K, StrategyQA, PubMedQA, MBPP and HumanEval, by mode, with 95% intervals; nothing is downloaded.

    `brainstacks-train card --downstream` quotes the file of results.

    A quick look: python -m benchmarks.downstream --data DATA --tasks strategyqa --documents 8
    """
    chosen = [name for name in TASKS if name in options.some_of(tasks, tuple(TASKS))]
    asked = options.some_of(modes, (*MODES, OWN))
    sandbox = Sandbox()
    passes: Passes = sandbox.passes
    at_hand, left_out = _at_hand(chosen, data, documents, sandbox)
    facts = machine()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    say("loading ...")
    served = Registry(registry)
    loaded = options.load(base, quantization, device)
    if chat:
        check_chat(loaded)
    model = ComposedModel.from_base(loaded, served)
    stacks, router = served.snapshot().serving
    plan = planned(at_hand, model, stacks, router, tuple(m for m in (*MODES, OWN) if m in asked), chat)

    def score(one: Measurement) -> list[float]:
        lm = ComposedLM(model, one.mode, one.task.domain)
        config = harness_task(one.task, one.documents, passes)
        return document_scores(lm, config, one.task.metric, chat)

    scores = measure(plan, run, score)
    found = Downstream(
        stacks,
        router,
        tuple(
            TaskScores(t.name, t.metric, t.domain, d.source, _constant(d, t), scores[t.name])
            for t, d in at_hand.items()
        ),
        left_out,
    )
    settings = options.asked(base, quantization, device, documents=documents, chat_template=chat)
    template = ", in the base's chat template" if chat else ""
    text = (
        "Share of documents answered right, with Wilson's 95% interval; differences in percentage points, by "
        f"a paired bootstrap over documents. Zero-shot, greedy{template}.\n\n"
        f"{markdown_table(*found.rows())}\n\n" + "\n".join(f"- {note}" for note in found.notes())
    )
    write_results(NAME, {"machine": facts, "settings": settings, **found.to_dict()}, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
