"""`--help` names every option once, in words for people."""

from __future__ import annotations

import re

import pytest

from server.__main__ import main
from server.help import GROUPS, help_text
from server.settings import Settings


def test_every_option_is_in_one_group() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(Settings.model_fields)


def test_every_option_is_shown_with_a_kind_that_a_person_can_read() -> None:
    text = help_text()
    for name in Settings.model_fields:
        assert len(re.findall(rf"^  --{name.replace('_', '-')}[ ,]", text, re.MULTILINE)) == 1
    for word in ("tuple", "Secret", "None", "Ellipsis", "Path", "int ", "str "):
        assert not re.search(rf"\b{word}", text)
    assert max(map(len, text.splitlines())) <= 100


def test_help_is_shown_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--port", "none", "--help"])
    assert capsys.readouterr().out.startswith("usage: brainstacks-serve")
