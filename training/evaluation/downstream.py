"""Shares of downstream tasks' documents that are answered right, by mode, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from training.evaluation.intervals import Estimate, Share, interval, resampled_nll

BASE = "base"


@dataclass(frozen=True)
class TaskScores:
    """What was measured of one task; every figure follows from these.

    Attributes:
        metric: lm-eval's name.
        domain: whose stack alone mode `own` applies.
        source: where the documents are from, in words.
        constant: share that the commonest answer has of them; None where answers are not a few words.
        scores: mode -> 0 or 1 for each document, in the same order in all modes.
    """

    task: str
    metric: str
    domain: str
    source: str
    constant: float | None
    scores: Mapping[str, Sequence[float]]

    @cached_property
    def shares(self) -> dict[str, Share]:
        return {mode: Share(round(sum(scores)), len(scores)) for mode, scores in self.scores.items()}

    @cached_property
    def less_base(self) -> dict[str, Estimate]:
        """Mode -> its share less the base's, by a bootstrap over documents, paired; {} without the base."""
        if BASE not in self.scores:
            return {}
        modes = list(self.scores)
        rows = list(zip(*self.scores.values(), strict=True))
        drawn = resampled_nll(rows, [1] * len(rows))  # of shares: each document weighs the same
        at = modes.index(BASE)
        return {
            mode: Estimate(
                self.shares[mode].value - self.shares[BASE].value, interval(drawn[:, i] - drawn[:, at])
            )
            for i, mode in enumerate(modes)
            if mode != BASE
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the figures for people, and the scores that they follow from."""
        return {
            **asdict(self),
            "shares": {
                m: {**asdict(s), "value": s.value, "interval": s.interval} for m, s in self.shares.items()
            },
            "less_base": {mode: found.to_dict() for mode, found in self.less_base.items()},
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TaskScores:
        """What `to_dict` wrote."""
        names = ("task", "metric", "domain", "source", "constant", "scores")
        return cls(**{name: document[name] for name in names})


@dataclass(frozen=True)
class Downstream:
    """Attributes:
    stacks: domain -> digest of what was served.
    router: digest of what routed; None where there was none.
    left_out: task, or task and mode -> why there is no figure of it.
    """

    stacks: Mapping[str, str]
    router: str | None
    tasks: tuple[TaskScores, ...]
    left_out: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {
            "stacks": dict(self.stacks),
            "router": self.router,
            "tasks": [task.to_dict() for task in self.tasks],
            "left_out": dict(self.left_out),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Downstream:
        """What `to_dict` wrote, with anything beside it."""
        tasks = tuple(map(TaskScores.from_dict, document["tasks"]))
        return cls(dict(document["stacks"]), document["router"], tasks, dict(document["left_out"]))

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """A table's header, and a row per task: shares with their intervals, differences below them."""
        modes = list(dict.fromkeys(mode for task in self.tasks for mode in task.scores))
        body = []
        for task in self.tasks:
            name = (
                f"{task.task} ({task.metric.replace('_', ' ')}), n = {next(iter(task.shares.values())).total}"
            )
            body.append([name, *(_share(task.shares.get(mode)) for mode in modes)])
            if task.less_base:
                body.append(["less base", *(_points(task.less_base.get(mode)) for mode in modes)])
        return ["task", *modes], body

    def notes(self) -> list[str]:
        """What the table's rows do not say, a line each."""
        found = []
        for task in self.tasks:
            line = f"{task.task}: {task.source}"
            if task.constant is not None:
                line += f"; one and the same answer to all would have {task.constant:.1%}"
            base = task.shares.get(BASE)
            if base is not None and not base.count:
                line += "; the base has none right"
            found.append(line)
        return found + [f"{what}: left out, {why}" for what, why in self.left_out.items()]


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    low, high = share.interval
    return f"{share.value:.1%} [{low:.1%}, {high:.1%}]"


def _points(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    value, (low, high) = difference.value, difference.interval
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
