"""Contestants take turns, and only steps in which all rows decode are timed."""

from __future__ import annotations

import pytest

from benchmarks.instruments.timing import (
    Contestant,
    OnStep,
    Progress,
    Run,
    SelfTimed,
    common_prefix,
    interleave,
    timed,
)
from tests.benchmarks.instruments.clock import Clock


def test_contestants_take_turns_after_a_short_uncounted_round() -> None:
    clock = Clock()
    log: list[str] = []
    lines: list[str] = []
    begun: list[float] = []
    contestants: dict[str, Contestant | SelfTimed] = {
        "A": clock.contestant("A", log, 0.5),
        "B": clock.contestant("B", log, 2.0),
    }
    runs = interleave(
        contestants,
        2,
        5,
        before_round=lambda: begun.append(clock.now),
        clock=clock,
        report=lines.append,
    )
    assert log == ["A2", "B2", "A5", "B5", "A5", "B5"]
    assert begun == [5.0, 17.5]
    assert [[run.rate for run in done] for done in runs.values()] == [[2.0, 2.0], [0.5, 0.5]]
    assert len(lines) == 4


def test_progress_tells_the_time_left() -> None:
    clock = Clock()
    lines: list[str] = []
    progress = Progress(4, lines.append, clock)
    clock.now = 50.0
    progress.done("x")
    assert lines == ["  1/4 x; about 2:30 left"]


def test_decode_rate_leaves_the_prefill_out() -> None:
    clock = Clock()
    run = timed(clock.contestant("A", [], 0.25, prefill=7.0), 5, clock)
    assert run.rate == 4.0
    assert run.first_token_s == 7.25


def test_only_steps_in_which_every_row_decodes_are_counted() -> None:
    """Rows that start at steps 0 and 2 and take 5 tokens each share the tokens of steps 3 and 4."""
    clock = Clock()
    run = timed(clock.contestant("A", [], 1.0, late=(0, 2)), 5, clock)
    assert (run.first_token_s, run.decode_s, run.decoded) == (3.0, 2.0, 4)
    assert run.tokens == ((0, 1, 2, 3, 4), (2, 3, 4, 5, 6))


def test_a_run_without_a_step_in_which_all_rows_decode_has_no_rate() -> None:
    clock = Clock()
    run = timed(clock.contestant("A", [], 1.0, late=(0, 3)), 3, clock)
    with pytest.raises(RuntimeError, match="generate more tokens"):
        _ = run.rate


def test_a_slow_contestant_generates_no_more_than_it_needs() -> None:
    log: list[str] = []
    clock = Clock()
    timed(clock.contestant("A", log, 1.0, most_tokens=4), 9, clock)
    timed(clock.contestant("A", log, 1.0, most_tokens=4), 3, clock)
    assert log == ["A4", "A3"]


def test_a_run_with_another_number_of_tokens_is_refused() -> None:
    def stops_early(tokens: int, on_step: OnStep) -> None:
        on_step({0: [1], 1: [1, 2, 3, 4]})

    with pytest.raises(RuntimeError, match=r"\[1, 4\] tokens were generated and 4 were asked for"):
        timed(Contestant(stops_early, rows=2), 4)


@pytest.mark.parametrize(
    ("theirs", "agreed"), [((1, 2, 3), 3), ((1, 2, 4), 2), ((9, 2, 3), 0), ((1, 2), 2), ((), 0)]
)
def test_common_prefix_counts_until_the_first_difference(theirs: tuple[int, ...], agreed: int) -> None:
    assert common_prefix(Run(((1, 2, 3),), 0.0, 1.0, 2), Run((theirs,), 0.0, 1.0, 2)) == agreed


def test_what_times_itself_is_believed_and_tells_no_tokens() -> None:
    own = SelfTimed(lambda tokens: Run((), 0.5, 2.0, 2 * tokens))
    clock = Clock()
    contestants: dict[str, Contestant | SelfTimed] = {"A": clock.contestant("A", [], 1.0), "B": own}
    runs = interleave(contestants, 1, 4, clock=clock, report=lambda line: None)
    assert runs["B"] == [Run((), 0.5, 2.0, 8)]
    assert common_prefix(runs["A"][0], runs["B"][0]) is None
