"""Which composition helps which prompt: measured, not labelled (paper, section 5.1; method 6b-d).

For every example the loss of its answer is measured under all 2^D on/off combinations of the D domains.
From the best of them a short search over softer weights follows, because the router's sigmoid value
multiplies the stack: what is measured here is what serving applies. Examples and combinations share
forwards, each row with weights of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from brainstacks.errors import ConfigError
from training.data.encoding import Example
from training.progress import shown
from training.recipe.settings import SEARCHES
from training.router.outcome_file import OutcomeFile
from training.router.stacked_base import StackedBase, Weights, domains_of, name_of
from training.runs.processes import ALONE, Processes
from training.runs.signals import Interrupted, StopRequest

AT_ONCE = 8
"""Examples measured together: enough to fill forwards of like lengths, few enough to lose to a kill."""

Point = tuple[float, ...]
"""A weight per domain, in the order of `StackedBase.digests`."""


@dataclass(frozen=True)
class Outcome:
    """What was measured for one example; losses are NLL in nats per answer token.

    Attributes:
        domain: its label: the domain whose data it comes from.
        losses: of each combination, by its name.
        weights: the best weights found, domain -> weight (0 for domains that do not help).
        loss: under `weights`.
        greedy: the combination that adding one domain at a time ends at.
    """

    domain: str
    example: Example
    losses: Mapping[str, float]
    weights: Weights
    loss: float
    greedy: str

    @property
    def oracle(self) -> float:
        """The lowest loss of all combinations, and of the weights that the search ended at.

        Weights that it tried and left, for a gain of no more than `min_gain`, do not count.
        """
        return min(self.loss, *self.losses.values())

    @property
    def greedy_cost(self) -> float:
        """What the greedy choice loses to the best combination: nats per token, not below 0."""
        return self.losses[self.greedy] - min(self.losses.values())


def combinations(domains: Sequence[str]) -> list[tuple[str, ...]]:
    """All subsets of `domains`, the empty one first."""
    return [c for n in range(len(domains) + 1) for c in itertools.combinations(domains, n)]


def greedy_choice(losses: Mapping[str, float], domains: Sequence[str], min_gain: float) -> str:
    """Keep adding the domain that lowers the loss most, while it does so by more than `min_gain`."""
    chosen: tuple[str, ...] = ()
    while True:
        rest = [d for d in domains if d not in chosen]
        options = [tuple(d for d in domains if d in (*chosen, new)) for new in rest]
        best = min(options, key=lambda c: losses[name_of(c)], default=None)
        if best is None or losses[name_of(chosen)] - losses[name_of(best)] <= min_gain:
            return name_of(chosen)
        chosen = best


def fewest_within(losses: Mapping[str, float], min_gain: float) -> str:
    """The smallest combination that is no more than `min_gain` worse than the best: ties cost memory."""
    lowest = min(losses.values())
    close = [name for name, loss in losses.items() if loss <= lowest + min_gain]
    return min(close, key=lambda name: (len(domains_of(name)), losses[name]))


def measure(
    stacked: StackedBase,
    pairs: Sequence[tuple[str, Example]],
    levels: Sequence[float],
    min_gain: float,
    known: Sequence[Mapping[str, float]] | None = None,
) -> list[Outcome]:
    """Measure (domain, example) pairs: every combination, then `SEARCHES` single changes of weight.

    Args:
        levels: weights that a search tries for a domain, besides 0.
        min_gain: nats per token by which a change must lower the loss.
        known: per pair, losses of combinations that need no measuring.

    Raises:
        ConfigError: a loss is not finite.
    """
    domains = tuple(stacked.digests)
    examples = [example for _, example in pairs]
    corners = {name_of(c): _point(c, domains) for c in combinations(domains)}
    tables = [{corners[name]: loss for name, loss in losses.items()} for losses in known or [{}] * len(pairs)]
    _fill(stacked, examples, tables, [corners.values()] * len(pairs))
    losses = [{name: table[point] for name, point in corners.items()} for table in tables]
    best = [corners[fewest_within(found, min_gain)] for found in losses]
    for _ in range(SEARCHES):
        nearby = [_neighbours(point, levels) for point in best]
        _fill(stacked, examples, tables, nearby)
        for i, table in enumerate(tables):
            lowest = min(nearby[i], key=table.__getitem__)
            if table[best[i]] - table[lowest] > min_gain:
                best[i] = lowest
    return [
        _outcome(
            domain, example, losses[i], dict(zip(domains, best[i], strict=True)), tables[i][best[i]], min_gain
        )
        for i, (domain, example) in enumerate(pairs)
    ]


def _fill(
    stacked: StackedBase,
    examples: Sequence[Example],
    tables: Sequence[dict[Point, float]],
    wanted: Sequence[Iterable[Point]],
) -> None:
    """Measure the `wanted` points of each example that its table lacks, all in the same forwards."""
    rows = [(i, point) for i, points in enumerate(wanted) for point in points if point not in tables[i]]
    weights = [dict(zip(stacked.digests, point, strict=True)) for _, point in rows]
    found = stacked.losses([examples[i] for i, _ in rows], weights)
    for (i, point), nats in zip(rows, found, strict=True):
        if not math.isfinite(nats):
            raise ConfigError(_broken(stacked, examples[i], nats))
        tables[i][point] = nats / len(examples[i].response)


def _broken(stacked: StackedBase, example: Example, nats: float) -> str:
    """Says which stack does it: in a batch it spoils the rows that do not use it too."""
    domains = stacked.digests
    alone = [d for d in domains if not math.isfinite(stacked.nll([example], [{d: 1.0}]).item())]
    return (
        f"the loss of example {example.id} is {nats}; alone, {' and '.join(alone) or 'no stack'} makes it "
        "so: serve another version of that stack, or take another `quantization`"
    )


def _point(on: Iterable[str], domains: Sequence[str]) -> Point:
    chosen = set(on)
    return tuple(float(d in chosen) for d in domains)


def _neighbours(point: Point, levels: Sequence[float]) -> list[Point]:
    """`point` with the weight of one domain changed, in every way; a weight's zero is a level too."""
    return [
        (*point[:i], level, *point[i + 1 :])
        for i in range(len(point))
        for level in (0.0, *levels)
        if level != point[i]
    ]


def _outcome(
    domain: str, example: Example, losses: Mapping[str, float], weights: Weights, loss: float, min_gain: float
) -> Outcome:
    greedy = greedy_choice(losses, list(weights), min_gain)
    return Outcome(domain, example, losses, weights, loss, greedy)


def measure_all(
    stacked: StackedBase,
    pairs: Sequence[tuple[str, Example]],
    path: Path,
    levels: Sequence[float],
    min_gain: float,
    report: Callable[[str], None] = print,
    stop: StopRequest | None = None,
    processes: Processes = ALONE,
) -> list[Outcome]:
    """`measure`, keeping what is found in the file `path`; what it holds already is not measured again.

    After a stack was replaced or a domain added, the losses of the combinations without it still hold: only
    the others are measured, and the search is done anew.

    Args:
        stacked: of this process alone.
        processes: that share the examples; the first keeps the file. What is found is, bit for bit, what one
            would find.

    Raises:
        ConfigError: `path` is of another base or other settings, or damaged; a loss is not finite.
        Interrupted: `stop` was asked for, of any process.
    """
    settings = {
        "base": stacked.base.identity.fingerprint,
        "quantization": stacked.base.quantization,
        "compute": stacked.base.dtype_name,
        "levels": list(levels),
        "min_gain": min_gain,
        "searches": SEARCHES,
    }
    file = processes.first(lambda: OutcomeFile(path, settings, stacked.digests))
    found: dict[int, Outcome] = {}
    for i, (domain, example) in enumerate(pairs):
        if (best := file.best(domain, example)) is not None:
            found[i] = _outcome(domain, example, file.losses(domain, example), *best, min_gain)
    todo = [i for i in range(len(pairs)) if i not in found]
    known = {i: file.losses(*pairs[i]) for i in todo}
    groups = [todo[start : start + AT_ONCE] for start in range(0, len(todo), AT_ONCE)]

    def measured(group: Sequence[int]) -> list[Outcome]:
        return measure(stacked, [pairs[i] for i in group], levels, min_gain, [known[i] for i in group])

    report(
        f"outcomes: {len(found)} of {len(pairs)} examples are measured already; of the others' "
        f"{len(todo) * 2 ** len(stacked.digests)} combinations, {sum(map(len, known.values()))} are"
    )
    with shown("outcomes", len(todo), "examples") as progress:
        for start in range(0, len(groups), processes.count):  # a group for each process
            some = groups[start : start + processes.count]
            each = processes.shared(some, measured, "outcomes", "groups")
            rows, made = list(chain(*some)), list(chain(*each))
            lines = [(o.domain, o.example, o.losses, o.weights, o.loss) for o in made]
            processes.on_first(partial(file.append, lines))
            found.update(zip(rows, made, strict=True))
            progress.advance(count=len(rows))
            if processes.summed(stop is not None and stop.requested)[0] > 0:
                raise Interrupted(f"stopped after {len(found)} of {len(pairs)} outcomes")
    return [found[i] for i in range(len(pairs))]
