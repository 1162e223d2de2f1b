"""`training.progress`: what takes long says how far it is; what is short, or a part of it, says nothing."""

from __future__ import annotations

import re
import threading

import pytest

from training import progress
from training.progress import Progress, duration, left, shown, silent, tracked, working


def test_the_text_tells_how_far_it_is_and_when_it_ends() -> None:
    now = [100.0]
    told = Progress("reading", 4, "files", clock=lambda: now[0])
    assert told.text() == "reading 0/4 files"
    now[0] += 30
    assert told.text() == "reading 0/4 files: 30 s so far"
    told.advance("3 rows")
    assert re.fullmatch(r"reading 1/4 files: 3 rows, 1\.5 min left, ends \d\d:\d\d", told.text())
    told.advance()
    assert told.text().startswith("reading 2/4 files: 30 s left, ends ")
    assert Progress("loading", 0, "", clock=lambda: 0.0).text() == "loading"


def test_times_are_told_in_the_unit_that_fits_and_ends_of_another_day_with_the_day() -> None:
    assert [duration(s) for s in (0.2, 59, 90, 3600, 9000)] == ["0 s", "59 s", "1.5 min", "1.0 h", "2.5 h"]
    assert re.fullmatch(r"48\.0 h left, ends \w{3} \d\d \w{3} \d\d:\d\d", left(3600, 1, 48))


def test_what_is_short_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with tracked([1, 2, 3], "counting", "numbers") as numbers:
        assert list(numbers) == [1, 2, 3]
    with working("thinking"):
        pass
    assert capsys.readouterr().err == ""


class Heard:
    """Stands in for stderr; `line` is set when something is written."""

    def __init__(self) -> None:
        self.text, self.line = "", threading.Event()

    def write(self, text: str) -> int:
        self.text += text
        if "\n" in text:
            self.line.set()
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_a_first_piece_that_takes_long_is_told_of_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setattr("sys.stderr", heard)
    with shown("reading", 2, "files", quiet=0.001) as told:
        assert heard.line.wait(10)
        told.advance()
    assert heard.text.startswith("reading 0/2 files")


def test_a_part_of_what_is_shown_is_silent_and_what_comes_after_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown("all", 1, "parts", quiet=0) as outer:
        with shown("part", 1, "pieces", quiet=0) as inner:
            inner.advance()
        outer.advance()
    with shown("next", 1, "parts", quiet=0) as after:
        after.advance()
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "all 1/1 parts",
        "next 1/1 parts",
    ]
    with silent(), shown("other process", 1, "parts", quiet=0) as hidden:
        hidden.advance()
    assert capsys.readouterr().err == ""


def test_what_fails_lets_the_next_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with tracked([1], "failing", "parts") as each:
            for _ in each:
                raise ValueError("no")

    with pytest.raises(ValueError, match="no") as kept:
        fail()
    assert kept.tb is not None, "which holds on to the frames"
    assert not progress._showing.locked()
