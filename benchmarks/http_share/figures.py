"""What the windows tell: how much longer a step is over HTTP, what of, and whether that is too much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.http_share.interpreter import PARTS, Part
from benchmarks.http_share.steps import Period, decode_ms
from benchmarks.http_share.threads import ENCODERS, ENGINE, HELPERS, LOOP, OTHERS, ThreadTime
from benchmarks.instruments.results import Spread, markdown_table

HTTP, ALONE = "over HTTP", "in process"
LIMIT = 5.0
"""Percent of a step: where HTTP makes one longer by more, the engine is to have a process of its own."""

RULE = f"""The rule: where a decode step is longer over HTTP by more than {LIMIT:g}%, the engine is to have a
process of its own. What that would win is the wait for the interpreter. The wait for cores, which the client
on this machine is a part of, would stay."""
TIMES = """## Where a step's time goes

Milliseconds per step, those that read prompts included: what the engine's thread does, which together is the
step; then what others take of the cores meanwhile."""
INTERPRETER = """## Who has the interpreter

Over HTTP, by thread and what it is at: percent of the time in which it held the interpreter's lock, and in
brackets in which it was on a core or ready for one."""


@dataclass(frozen=True)
class Window:
    """What happened while streams ran.

    Attributes:
        spent: kind of thread -> what its threads took, in this process.
        client: what the process took that reads the streams.
    """

    seconds: float
    periods: Sequence[Period]
    spent: Mapping[str, ThreadTime]
    client: ThreadTime

    @property
    def step_ms(self) -> float:
        """Mean of all steps, those that read prompts included."""
        return 1000 * self.seconds / len(self.periods)

    @property
    def rate(self) -> float:
        """Tokens of all streams per second."""
        return self._tokens / self.seconds

    @property
    def loop_us(self) -> float:
        """Microseconds of a core that the event loop takes for each token."""
        return 1e6 * self.spent[LOOP].computed / self._tokens

    def ms(self, kind: str) -> float:
        """On a core, per step."""
        return self._each(self.spent[kind].computed)

    @property
    def parts(self) -> dict[str, float]:
        """What the engine's thread does in a step, ms; together `step_ms`."""
        time = self.spent[ENGINE]
        slept = max(0.0, self.seconds - time.computed - time.queued)
        return {
            "computes": self._each(time.computed),
            "waits for a core": self._each(time.queued),
            "waits for the interpreter": self._each(slept),
        }

    @property
    def others(self) -> dict[str, float]:
        """What all other threads take of the cores in a step, ms."""
        of_threads = {kind: self.ms(kind) for kind in (LOOP, ENCODERS, HELPERS, OTHERS)}
        return {**of_threads, "client": self._each(self.client.computed)}

    @property
    def _tokens(self) -> int:
        return sum(each.step.given for each in self.periods)

    def _each(self, seconds: float) -> float:
        return 1000 * seconds / len(self.periods)


@dataclass
class Case:
    """A number of streams of one mix.

    Attributes:
        windows: contestant -> one of each round.
        holds, wants: part -> its share of the time: in which it held the interpreter, and in which it was on
            a core or ready for one; empty where nobody looked.
    """

    streams: int
    mix: str
    windows: dict[str, list[Window]]
    holds: dict[Part, float]
    wants: dict[Part, float]

    def spread(self, contestant: str, figure: Callable[[Window], float]) -> Spread:
        return Spread.of(map(figure, self.windows[contestant]))

    @property
    def decode(self) -> dict[str, Spread]:
        """Contestant -> milliseconds of a decode step, of as many rows."""
        pairs = [decode_ms(http.periods, alone.periods) for http, alone in self._pairs]
        return {HTTP: Spread.of(http for http, _ in pairs), ALONE: Spread.of(alone for _, alone in pairs)}

    @property
    def longer(self) -> Spread:
        """Percent by which such a step is longer over HTTP."""
        ratio = Spread.ratio(self.decode[HTTP].rounds, self.decode[ALONE].rounds)
        return Spread.of(100 * (each - 1) for each in ratio.rounds)

    def longer_by(self, part: str) -> Spread:
        """Percent of a mean step in process by which that part of the engine's thread is longer over HTTP; of
        all parts together, by which a mean step is."""
        pairs = zip(self.windows[HTTP], self.windows[ALONE], strict=True)
        return Spread.of(
            100 * (http.parts[part] - alone.parts[part]) / alone.step_ms for http, alone in pairs
        )

    @property
    def loop_share(self) -> Spread:
        """Percent of a step that the event loop takes of a core."""
        return self.spread(HTTP, lambda window: 100 * window.ms(LOOP) / window.step_ms)

    @property
    def above(self) -> bool:
        return self.longer.median > LIMIT

    def to_document(self) -> dict[str, Any]:
        parts = self.windows[HTTP][0].parts
        return {
            "streams": self.streams,
            "mix": self.mix,
            "decode_step_ms": self.decode,
            "longer_percent": self.longer,
            "above_limit": self.above,
            "longer_by_percent": {part: self.longer_by(part) for part in parts},
            "loop_share_percent": self.loop_share,
            "loop_us_per_token": self.spread(HTTP, lambda window: window.loop_us),
            "tokens_per_second": {each: self.spread(each, lambda w: w.rate) for each in self.windows},
            "step_ms": {each: self.spread(each, lambda w: w.step_ms) for each in self.windows},
            "engine_ms": {each: self._by_key(each, lambda w: w.parts) for each in self.windows},
            "others_ms": {each: self._by_key(each, lambda w: w.others) for each in self.windows},
            "holds_interpreter": {", ".join(part): share for part, share in self.holds.items()},
            "on_or_ready_for_a_core": {", ".join(part): share for part, share in self.wants.items()},
        }

    @property
    def _pairs(self) -> list[tuple[Window, Window]]:
        """Of each round, that over HTTP and that in process."""
        return list(zip(self.windows[HTTP], self.windows[ALONE], strict=True))

    def _by_key(self, contestant: str, figures: Callable[[Window], Mapping[str, float]]) -> dict[str, Spread]:
        found = [figures(window) for window in self.windows[contestant]]
        return {key: Spread.of(each[key] for each in found) for key in found[0]}


def tables(cases: Sequence[Case]) -> str:
    """Verdict first."""
    sections = [RULE, _verdict(cases), TIMES, _times(cases)]
    if any(case.holds for case in cases):
        sections += [INTERPRETER, _interpreter(cases)]
    return "\n\n".join(sections)


def _verdict(cases: Sequence[Case]) -> str:
    parts = list(cases[0].windows[HTTP][0].parts)
    header = [
        *("streams", "mix", f"decode step {ALONE}, ms", f"{HTTP}, ms", "longer by, %", f"at most {LIMIT:g}%"),
        *(f"mean step longer by, %: it {part}" for part in parts),
        *("loop's CPU, % of a step", "us a token", f"tok/s {ALONE}", HTTP),
    ]
    rows = [
        [
            *(case.streams, case.mix, case.decode[ALONE], case.decode[HTTP], case.longer),
            "above" if case.above else "below",
            *(case.longer_by(part) for part in parts),
            *(case.loop_share, case.spread(HTTP, lambda w: w.loop_us)),
            *(case.spread(each, lambda w: w.rate) for each in (ALONE, HTTP)),
        ]
        for case in cases
    ]
    return markdown_table(header, rows)


def _times(cases: Sequence[Case]) -> str:
    first = cases[0].windows[HTTP][0]
    header = ["streams", "mix", "", "step", *first.parts, *first.others]
    rows = [
        [
            *(case.streams, case.mix, each, case.spread(each, lambda w: w.step_ms)),
            *case._by_key(each, lambda w: w.parts).values(),
            *case._by_key(each, lambda w: w.others).values(),
        ]
        for case in cases
        for each in (ALONE, HTTP)
    ]
    return markdown_table(header, rows)


def _interpreter(cases: Sequence[Case]) -> str:
    header = ["thread", "at", *(f"{case.streams} {case.mix}" for case in cases)]
    rows: list[list[object]] = [
        [kind, part, *(_share(case, (kind, part)) for case in cases)] for kind, part in PARTS
    ]
    kinds = dict.fromkeys(kind for kind, _ in PARTS)
    for kind in kinds:
        of_kind = [each for each in PARTS if each[0] == kind]
        rows.append([kind, "in all", *(_share(case, *of_kind) for case in cases)])
    return markdown_table(header, rows)


def _share(case: Case, *parts: Part) -> str:
    holds, wants = (sum(shares[part] for part in parts) for shares in (case.holds, case.wants))
    return f"{100 * holds:.1f} ({100 * wants:.1f})"
