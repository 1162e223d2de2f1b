"""The report's section on stages of preferences and rewards, and what they did to every domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainstacks.stacks.card import plain
from training.report.page import Section, Table, nats
from training.report.records import RunRecords
from training.report.training import MAKER


def reinforcement(records: RunRecords) -> Section:
    title, wanted = "Reinforcement", records.wants_stages
    found = [(d, n, state) for d, states in records.stages.items() for n, state in enumerate(states, 1)]
    if not found:
        return Section(
            title, text=[] if wanted else ["The recipe has no `rl:`."], command=MAKER if wanted else ""
        )
    rows = [
        (
            domain,
            str(n),
            state["method"],
            figure,
            plain(before),
            plain(state["after"][figure]),
            _outcome(state),
        )
        for domain, n, state in found
        for figure, before in state["before"].items()
    ]
    effects = [
        (domain, str(n), of, nats(before), nats(after), f"{after - before:+.4f}")
        for domain, n, state in found
        for of, (before, after) in state["effects"].items()
    ]
    columns = ("domain", "stage", "method", "held-out figure", "before", "after", "outcome")
    changes = ("domain", "stage", "validation loss of", "without the stage", "with it", "difference")
    text = ["A stage that is not frozen has its figures before it in both columns."]
    return Section(
        title, tables=(Table("Stages", columns, rows, True), Table("Losses", changes, effects)), text=text
    )


def _outcome(state: Mapping[str, Any]) -> str:
    """Only of what is frozen are effects measured."""
    return f"{'frozen' if state['effects'] else 'not frozen'}; {state['stopped']}"
