"""The verdict goes by the decode step's time, and the parts of a step's time are all of it."""

from __future__ import annotations

import pytest

from benchmarks.http_share.figures import ALONE, HTTP, Case, Window, tables
from benchmarks.http_share.interpreter import shares
from benchmarks.http_share.steps import Period, Step
from benchmarks.http_share.threads import ENCODERS, ENGINE, HELPERS, LOOP, OTHERS, ThreadTime

LOCK = "waits for the interpreter"


def window(step_s: float, computed: float, queued: float, loop: float = 0.0, client: float = 0.0) -> Window:
    """Ten decode steps of two streams; of each, what the engine's thread, the loop and the client took."""
    spent = dict.fromkeys((ENCODERS, HELPERS, OTHERS), ThreadTime())
    spent |= {ENGINE: ThreadTime(10 * computed, 10 * queued), LOOP: ThreadTime(10 * loop)}
    steps = [Period(Step(0.0, rows=2, computed=2, given=2), step_s)] * 10
    return Window(10 * step_s, steps, spent, ThreadTime(10 * client))


def case(http: Window, alone: Window) -> Case:
    return Case(2, "base", {ALONE: [alone], HTTP: [http]}, {}, {})


def test_the_parts_of_a_step_are_all_of_it() -> None:
    one = window(0.010, computed=0.006, queued=0.003, loop=0.002)
    assert one.step_ms == pytest.approx(10)
    assert list(one.parts.values()) == pytest.approx([6, 3, 1])
    assert one.rate == pytest.approx(200)
    assert one.loop_us == pytest.approx(1000)
    assert one.others["loop"] == pytest.approx(2)


def test_clocks_that_differ_by_a_tick_give_no_negative_wait() -> None:
    assert window(0.010, computed=0.008, queued=0.003).parts[LOCK] == 0


@pytest.mark.parametrize(("http", "above"), [(0.0106, True), (0.0104, False), (0.009, False)])
def test_the_rule_is_five_percent_of_the_step_in_process(http: float, above: bool) -> None:
    found = case(window(http, 0.008, 0.0), window(0.010, 0.008, 0.0))
    assert found.longer.median == pytest.approx(100 * (http / 0.010 - 1))
    assert found.above is above
    assert ("| above" if above else "| below") in tables([found])


def test_what_a_step_is_longer_by_is_told_apart() -> None:
    found = case(window(0.012, 0.0085, 0.002, loop=0.003), window(0.010, 0.008, 0.001))
    document = found.to_document()
    assert {part: spread.median for part, spread in document["longer_by_percent"].items()} == pytest.approx(
        {"computes": 5.0, "waits for a core": 10.0, LOCK: 5.0}
    )
    assert document["loop_share_percent"].median == pytest.approx(25.0)
    assert document["loop_us_per_token"].median == pytest.approx(1500)


def test_who_has_the_interpreter_is_a_table_where_somebody_looked() -> None:
    found = case(window(0.010, 0.008, 0.0), window(0.010, 0.008, 0.0))
    assert "## Who has the interpreter" not in tables([found])
    found.holds |= shares(["thread (1): MainThread;event (server/sse.py:20) 5"], 50)
    found.wants |= shares(["thread (7): engine 40"], 50)
    text = tables([found])
    assert "2 base" in text
    assert "10.0 (0.0)" in text
    assert "0.0 (80.0)" in text
