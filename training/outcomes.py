"""Which composition helps which prompt: measured, not labelled (paper, section 5.1; method 6b-d).

For every example the loss of its answer is measured under all 2^D on/off combinations of the D domains.
From the best of them a short search over softer weights follows, because the router's sigmoid value
multiplies the stack: what is measured here is what serving applies.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from brainstacks.errors import ConfigError
from training.composition import Composed, Weights
from training.data import Example


@dataclass(frozen=True)
class Outcome:
    """What was measured for one example.

    Attributes:
        domain: its label: the domain whose data it comes from.
        prompt: its token ids, as the router reads them.
        losses: NLL (nats per answer token) of each combination, by its domains joined with "+"; "" is
            the base.
        weights: the best weights found, domain -> weight (0 for domains that do not help).
        loss: NLL under `weights`.
        greedy: the combination that adding one domain at a time ends at.
    """

    id: str
    domain: str
    prompt: tuple[int, ...]
    losses: Mapping[str, float]
    weights: Weights
    loss: float
    greedy: str

    @property
    def best(self) -> str:
        """The exhaustive best of the measured combinations."""
        return min(self.losses, key=lambda name: self.losses[name])


def combinations(domains: Sequence[str]) -> list[tuple[str, ...]]:
    """All subsets of `domains`, the empty one first."""
    return [c for n in range(len(domains) + 1) for c in itertools.combinations(domains, n)]


def greedy_choice(losses: Mapping[str, float], domains: Sequence[str], min_gain: float) -> str:
    """Keep adding the domain that lowers the loss most, while it does so by more than `min_gain`."""
    chosen: tuple[str, ...] = ()
    while True:
        rest = [d for d in domains if d not in chosen]
        options = [tuple(d for d in domains if d in (*chosen, new)) for new in rest]
        best = min(options, key=lambda c: losses["+".join(c)], default=None)
        if best is None or losses["+".join(chosen)] - losses["+".join(best)] <= min_gain:
            return "+".join(chosen)
        chosen = best


def measure(
    composed: Composed,
    domain: str,
    example: Example,
    levels: Sequence[float],
    min_gain: float,
    searches: int = 2,
) -> Outcome:
    """Measure one example: every combination, then `searches` rounds of single-domain changes of weight."""
    domains = list(composed.digests)
    tokens = len(example.response)

    def losses_of(rows: Sequence[Weights]) -> list[float]:
        return [float(x) / tokens for x in composed.nll([example] * len(rows), rows)]

    subsets = combinations(domains)
    measured = dict(
        zip(("+".join(c) for c in subsets), losses_of([dict.fromkeys(c, 1.0) for c in subsets]), strict=True)
    )
    start = fewest_within(measured, min_gain)
    best: dict[str, float] = {d: (1.0 if d in start.split("+") else 0.0) for d in domains}
    loss = measured[start]
    for _ in range(searches):
        neighbours = [{**best, d: level} for d in domains for level in (0.0, *levels) if level != best[d]]
        found = losses_of(neighbours)
        i = min(range(len(found)), key=found.__getitem__)
        if loss - found[i] <= min_gain:
            break
        best, loss = neighbours[i], found[i]
    return Outcome(
        example.id, domain, example.prompt, measured, best, loss, greedy_choice(measured, domains, min_gain)
    )


def fewest_within(losses: Mapping[str, float], min_gain: float) -> str:
    """The smallest combination that is no more than `min_gain` worse than the best: ties cost memory."""
    lowest = min(losses.values())
    close = [name for name, loss in losses.items() if loss <= lowest + min_gain]
    return min(close, key=lambda name: (len(name.split("+")) if name else 0, losses[name]))


def measure_all(
    composed: Composed,
    examples: Sequence[tuple[str, Example]],
    path: Path,
    levels: Sequence[float],
    min_gain: float,
    report: Callable[[str], None] = print,
) -> list[Outcome]:
    """Measure (domain, example) pairs, appending to the JSONL file `path`; those it holds are not redone.

    Raises:
        ConfigError: `path` was measured with other stacks or settings.
    """
    header = {"stacks": dict(composed.digests), "levels": list(levels), "min_gain": min_gain}
    done = read_outcomes(path, header)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
    elif not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")  # a cut line ends here, or the next outcome would become part of it
    started, fresh = time.monotonic(), 0
    results = []
    with path.open("a", encoding="utf-8") as file:
        for i, (domain, example) in enumerate(examples):
            key = f"{domain}/{example.id}"
            if key not in done:
                done[key] = measure(composed, domain, example, levels, min_gain)
                file.write(json.dumps(asdict(done[key])) + "\n")
                file.flush()
                fresh += 1
                if fresh % 10 == 0:
                    each = (time.monotonic() - started) / fresh
                    left = each * (len(examples) - i - 1) / 60
                    report(f"outcomes {i + 1}/{len(examples)}: {each:.1f} s each, {left:.1f} min left")
            results.append(done[key])
    return results


def read_outcomes(path: Path, header: Mapping[str, object]) -> dict[str, Outcome]:
    """Outcomes in `path` by "domain/id"; a last line that was cut off by a kill is left out."""
    if not path.is_file():
        return {}
    first, *lines = path.read_text(encoding="utf-8").split("\n")
    try:
        measured_with = json.loads(first)
    except json.JSONDecodeError:  # cut off by a kill: nothing was measured yet
        measured_with = None
    if measured_with != dict(header):
        raise ConfigError(
            f"{path.name} was measured with other stacks or settings; remove it to measure again"
        )
    outcomes = {}
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        row["prompt"] = tuple(row["prompt"])
        outcome = Outcome(**row)
        outcomes[f"{outcome.domain}/{outcome.id}"] = outcome
    return outcomes
