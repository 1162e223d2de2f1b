"""`training.runs.stored`: absence is None, damage is refused by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import ConfigError
from training.runs.stored import read_as, read_json, read_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "found.json"


def test_where_there_is_no_file_there_is_nothing(path: Path) -> None:
    assert (read_json(path), read_as(path, dict), read_lines(path)) == (None, None, [])


def test_a_value_is_read_and_made_what_it_stands_for(path: Path) -> None:
    path.write_text('{"ä": [1, null]}', encoding="utf-8")
    assert read_json(path) == {"ä": [1, None]}
    assert read_as(path, list) == ["ä"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xfa"])
def test_what_is_no_json_is_refused_by_name(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for read in (read_json, lambda path: read_as(path, dict)):
        with pytest.raises(ConfigError, match=r"found\.json is no JSON .*; make it again, or remove it"):
            read(path)


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"losses": 3}', '{"losses": {"a": "b"}}'])
def test_json_of_another_form_is_refused_by_name(path: Path, text: str) -> None:
    def parse(document: Any) -> dict[str, float]:
        return {name: float(loss) for name, loss in document["losses"].items()}

    path.write_text(text)
    with pytest.raises(ConfigError, match=r"found\.json holds something else"):
        read_as(path, parse)


def test_a_last_line_without_an_end_is_not_read(path: Path) -> None:
    path.write_text('{"a": 1}\n[2]\n{"a": ')
    assert read_lines(path) == [{"a": 1}, [2]]


def test_a_damaged_line_is_refused_by_number(path: Path) -> None:
    path.write_text('{"a": 1}\n{"a": \n[2]\n')
    with pytest.raises(ConfigError, match=r"found\.json, line 2: no JSON .*remove the line"):
        read_lines(path)
