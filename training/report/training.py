"""The report's sections on how stacks were made: the run, its losses, its rounds, what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from brainstacks.stacks.card import plain
from training.curriculum.forgetting import ForgettingMatrix, Kind
from training.report import plots
from training.report.page import NATS, Figure, Section, Table, nats
from training.report.records import Line, RunRecords
from training.runs.log import TIMING

MAKER = "brainstacks-train curriculum"


def facts(records: RunRecords) -> Section:
    identity, recipe = records.identity, records.identity["recipe"]
    unfinished = records.unfinished
    rows = {
        "command": identity["command"],
        "state": unfinished or "finished",
        "base": recipe["base"],
        "its fingerprint": identity["base"],
        "quantisation": recipe["quantization"],
        "domains": [domain["name"] for domain in recipe["domains"]],
        "earlier stacks": recipe["earlier_stacks"],
        "seeds": {part: recipe[part]["seed"] for part in ("round", "data")},
        "versions": identity["tools"],
    }
    data = [(domain, *file) for domain, files in identity["data"].items() for file in files]
    times = [
        (domain, str(n), *_duration(lines))
        for domain, rounds in records.logged.items()
        for n, lines in enumerate(rounds, 1)
    ]
    served = [
        (
            domain,
            f"{m.rounds} x {m.config.experts} x r{m.config.rank}",
            plain(m.seed),
            m.licence or "not told",
            m.description,
        )
        for domain, (m, _) in records.stacks.items()
    ]
    tables = (
        Table("The run", ("what", "value"), [(name, plain(value)) for name, value in rows.items()], True),
        Table(
            "Time of the steps", ("domain", "round", "steps", "tokens", "minutes", "tokens/s"), times, True
        ),
        Table(
            "Stacks of the registry",
            ("domain", "rounds x experts x rank", "seed", "licence of the data", "description"),
            served,
        ),
        Table("Data", ("domain", "source", "sha256"), data),
    )
    document = yaml.safe_dump(identity, sort_keys=False, allow_unicode=True)
    text = [f"This run is {unfinished}. What follows is of what it has done."] if unfinished else []
    return Section("Run", tables=tables, text=text, document=document)


def _duration(lines: Sequence[Line]) -> tuple[str, ...]:
    """Steps, tokens, minutes and tokens/s of a round's steps; its evaluations are not counted."""
    steps = [line for line in lines if line["kind"] == "step"]
    tokens, seconds = sum(s["tokens"] for s in steps), sum(s[TIMING]["seconds"] for s in steps)
    rate = f"{tokens / seconds:,.0f}" if seconds else "-"
    return (str(len(steps)), f"{tokens:,}", f"{seconds / 60:.1f}", rate)


def loss_curves(records: RunRecords) -> Section:
    title = "Loss curves"
    if not records.logged:
        return Section(title, command=MAKER)
    caption = (
        "Training loss of every step (grey) and loss on the selection records, which are never trained on "
        "(dots, a colour for each round), per domain: a round's lowest dot is what may be frozen."
    )
    panels = {domain: _curves(rounds) for domain, rounds in records.logged.items()}
    rows = [
        (domain, str(n), str(line["step"]), nats(line.get("train_loss", math.nan)), nats(line["nll"]))
        for domain, rounds in records.logged.items()
        for n, lines in enumerate(rounds, 1)
        for line in lines
        if "nll" in line
    ]
    columns = ("domain", "round", "step", "training loss since the last", "selection loss")
    svg = plots.lines(title, panels, "optimiser steps, over all rounds", NATS)
    return Section(title, [Figure(svg, caption)], [Table("Evaluations", columns, rows)])


def _curves(rounds: Sequence[Sequence[Line]]) -> list[plots.Line]:
    """Training and selection losses, over the steps of all rounds."""
    curves = []
    start = 0
    for n, lines in enumerate(rounds):
        for key, label in (("loss", "training"), ("nll", f"selection, round {n + 1}")):
            shown = [line for line in lines if key in line]
            x, y = [start + line["step"] for line in shown], [line[key] for line in shown]
            curves.append(plots.Line(label, x, y, style=n, faint=key == "loss", marked=key == "nll"))
        start += max(line["step"] for line in lines)
    return curves


def residual_rounds(records: RunRecords) -> Section:
    title = "Residual rounds"
    found = [(d, n, state) for d, states in records.rounds.items() for n, state in enumerate(states, 1)]
    if not found:
        return Section(title, command=MAKER)
    caption = (
        "Loss on the selection records before (hollow) and after (full) each round: further left is better, "
        "and a round whose dots coincide taught nothing."
    )
    changes = [(f"{domain}, round {n}", state["baseline"], state["best"]) for domain, n, state in found]
    rows = [(domain, str(n), *_round(state)) for domain, n, state in found]
    columns = ("domain", "round", "before", "after", "gain", "steps", "stopped because")
    svg = plots.changes(title, changes, NATS)
    return Section(title, [Figure(svg, caption)], [Table("Rounds", columns, rows)])


def _round(state: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = state["baseline"], state["best"]
    steps = max((evaluation["step"] for evaluation in state["history"]), default=0)
    return (nats(before), nats(after), f"{before - after:+.4f}", str(steps), state["stopped"])


KINDS: Mapping[Kind, str] = {
    "ungated": "Loss of each domain (column) after each domain was added (row), with all stacks on: orange "
    "is worse than when the domain was new, blue is better.",
    "isolated": "The same with the domain's own stack alone: orange is worse than with those up to its own, "
    "blue is better.",
    "prefix": "The same with the stacks up to the domain's own: a column is constant, to the bit, and "
    "without colour.",
}


def forgetting(records: RunRecords) -> Section:
    title, found = "Forgetting", records.forgetting
    if found is None:
        return Section(title, command=MAKER)
    figures = [Figure(_triangle(f"{title}, {kind}", found, kind), text) for kind, text in KINDS.items()]
    sums = [
        (kind, nats(sum_["average"]), f"{sum_['backward_transfer']:+.4f}", f"{sum_['forgetting']:+.4f}")
        for kind, sum_ in found.figures().items()
    ]
    rows = [
        (after, domain, *(nats(getattr(losses, kind)) for kind in KINDS))
        for after, row in zip(found.domains, found.rows, strict=True)
        for domain, losses in row.items()
    ]
    transfer = "backward transfer (above 0: later domains helped)"
    tables = (
        Table("Sums", ("stacks on", "average", transfer, "forgetting (above 0: nats lost)"), sums, True),
        Table("Losses", ("after", "domain", *KINDS), rows),
    )
    return Section(title, figures, tables, [found.verdict()])


def _triangle(title: str, found: ForgettingMatrix, kind: Kind) -> str:
    """Losses of `kind`; a cell's colour is what was gained since its domain was frozen."""
    frozen = {d: row[d].prefix for d, row in zip(found.domains, found.rows, strict=True)}
    losses = [[getattr(row[d], kind) if d in row else math.nan for d in found.domains] for row in found.rows]
    gains = [[frozen[d] - loss for d, loss in zip(found.domains, row, strict=True)] for row in losses]
    numbers = [[f"{loss:.3f}" for loss in row] for row in losses]
    return plots.matrix(title, found.domains, found.domains, gains, numbers, "loss of", "after")
