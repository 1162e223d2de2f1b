"""`brainstacks attribute` against a server on a real socket."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.color import ColorType

from brainstacks import heat_map
from brainstacks.stacks.registry import Registry
from tests.console_script import Script
from tests.served_registry import Serving
from tests.stacks.files import write_stack

TOKENS = [
    {"text": "a", "base": -2.0, "composed": -0.5, "without": {"chat": -2.0, "math": -0.5}},
    {"text": "\x1b[31m", "base": -1.0, "composed": -1.4, "without": {"chat": -1.0, "math": -1.4}},
]
FOUND = {
    "tokens": TOKENS,
    "sums": {"base": -3.0, "composed": -1.9, "without": {"chat": -3.0, "math": -1.9}},
    "routing": {"weights": {"chat": 0.8, "math": 0.9, "law": 0.0}},
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("BRAINSTACKS_API_KEY", raising=False)
    return Script(monkeypatch, capsys)


@pytest.fixture
def serving(registry: Registry, tmp_path: Path) -> Iterator[Serving]:
    registry.publish(write_stack(tmp_path / "chat"))
    each = Serving(registry)
    yield each
    each.stop()


def test_a_row_per_token_has_what_each_stack_adds_coloured_by_how_much() -> None:
    table = heat_map._table(FOUND)
    cells: dict[str, list[Any]] = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["token"] == ['"a"', '"\\x1b[31m"', "all"]
    assert [str(cell) for cell in cells["base"]] == ["-2.00", "-1.00", "-3.00"]
    assert [str(cell) for cell in cells["chat"]] == ["+1.50", "-0.40", "+1.10"]
    assert [str(cell) for cell in cells["math"]] == ["+0.00", "+0.00", "+0.00"]
    likelier, less_likely = (cell.style.bgcolor for cell in cells["chat"][:2])
    assert likelier.type == less_likely.type == ColorType.TRUECOLOR
    assert (likelier.triplet.green, less_likely.triplet.red) == (150, 60)
    assert cells["math"][0].style.bgcolor is None
    assert table.caption == "chat 0.80, math 0.90"


def test_a_server_is_asked_and_its_table_printed(script: Script, serving: Serving) -> None:
    assert script("attribute", "hi", "ho", "--server", serving.url, "--model", "tiny:chat") == 0
    assert re.search(r'"h".*-\d', script.out)
    code, found = script.json("attribute", "hi", "ho", "--server", serving.url)
    assert (code, found["object"], len(found["tokens"])) == (0, "attribution", 2)


def test_what_the_server_refuses_is_one_line(script: Script, serving: Serving) -> None:
    assert script("attribute", "hi", "ho", "--server", serving.url, "--model", "tiny:law") == 1
    assert (script.out, script.err.count("\n")) == ("", 1)
    assert "tiny:law" in script.err
