"""Interleaved runs of contestants that generate one text, or a batch of them, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

Clock = Callable[[], float]
Report = Callable[[str], None]
OnStep = Callable[[Mapping[int, Sequence[int]]], None]
"""Told, as soon as a step is over, which token ids it gave to each row."""

Generate = Callable[[int, OnStep], None]
"""Generates that many tokens for every row, and calls back after each step."""

WARM_UP_TOKENS = 2

say: Report = partial(print, flush=True)


@dataclass(frozen=True)
class Contestant:
    """What is timed.

    Attributes:
        rows: texts that it generates at once.
        most_tokens: tokens per row that are enough to know a slow one's rate; None for as many as the rest.
    """

    generate: Generate
    rows: int = 1
    most_tokens: int | None = None


@dataclass(frozen=True)
class Run:
    """One timed generation.

    Attributes:
        tokens: ids in order, per row; empty of a contestant that tells none.
        first_token_s: seconds from the start until every row has a token (the prefill).
        decode_s: seconds from there until the first row has its last token: all rows decode all the time.
        decoded: tokens of all rows within `decode_s`.
    """

    tokens: tuple[tuple[int, ...], ...]
    first_token_s: float
    decode_s: float
    decoded: int

    @property
    def rate(self) -> float:
        """Decoded tokens of all rows per second, the prefill left out.

        Raises:
            RuntimeError: there was no step in which all rows decoded.
        """
        if not self.decoded:
            raise RuntimeError("there was no step in which all rows decoded; generate more tokens")
        return self.decoded / self.decode_s


@dataclass(frozen=True)
class SelfTimed:
    """What runs elsewhere and times itself.

    Attributes:
        run: generates that many tokens for every row.
    """

    run: Callable[[int], Run]


def timed(contestant: Contestant | SelfTimed, tokens: int, clock: Clock = perf_counter) -> Run:
    """Run `contestant` once, for at least two tokens per row.

    Raises:
        RuntimeError: it gave another number of tokens, so that its figure would not be comparable.
    """
    if isinstance(contestant, SelfTimed):
        return contestant.run(tokens)
    wanted = min(tokens, contestant.most_tokens or tokens)
    ids: list[list[int]] = [[] for _ in range(contestant.rows)]
    steps: list[tuple[float, int]] = []
    first: dict[int, float] = {}
    last: dict[int, float] = {}

    def on_step(fresh: Mapping[int, Sequence[int]]) -> None:
        now = clock()
        for row, tokens in fresh.items():
            ids[row].extend(tokens)
            first.setdefault(row, now)
            last[row] = now
        steps.append((now, sum(map(len, fresh.values()))))

    start = clock()
    contestant.generate(wanted, on_step)
    counts = [len(row) for row in ids]
    if counts != [wanted] * contestant.rows:
        raise RuntimeError(f"{counts} tokens were generated and {wanted} were asked for in every row")
    begin, end = max(first.values()), min(last.values())
    decoded = sum(count for when, count in steps if begin < when <= end)
    return Run(tuple(map(tuple, ids)), begin - start, end - begin, decoded)


class Progress:
    """Says what was just measured, and about how long the rest takes.

    Args:
        total: measurements to come.
    """

    def __init__(self, total: int, report: Report = say, clock: Clock = perf_counter) -> None:
        self._total = total
        self._report = report
        self._clock = clock
        self._begin = clock()
        self._done = 0

    def done(self, text: str) -> None:
        self._done += 1
        each = (self._clock() - self._begin) / self._done
        left = round(each * (self._total - self._done))
        self._report(f"  {self._done}/{self._total} {text}; about {left // 60}:{left % 60:02d} left")


def interleave(
    contestants: Mapping[str, Contestant | SelfTimed],
    rounds: int,
    tokens: int,
    *,
    before_round: Callable[[], None] = lambda: None,
    clock: Clock = perf_counter,
    report: Report = say,
) -> dict[str, list[Run]]:
    """Run A B C, A B C, ...: what disturbs the machine for a while disturbs all of them.

    Before the first round each runs once, briefly and uncounted, to load and pack what later runs find ready.
    """
    for contestant in contestants.values():
        timed(contestant, WARM_UP_TOKENS, clock)
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    progress = Progress(rounds * len(contestants), report, clock)
    for number in range(rounds):
        before_round()
        for name, contestant in contestants.items():
            run = timed(contestant, tokens, clock)
            runs[name].append(run)
            progress.done(f"round {number + 1}, {name}: {run.rate:.1f} tok/s")
    return runs


def common_prefix(ours: Run, theirs: Run) -> int | None:
    """Tokens of their first rows that two runs agree on before they differ; None where one tells none."""
    if not (ours.tokens and theirs.tokens):
        return None
    a, b = ours.tokens[0], theirs.tokens[0]
    differing = (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(a), len(b)))
