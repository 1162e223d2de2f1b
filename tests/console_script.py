"""The console script `brainstacks`, run in this process."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from brainstacks import cli


class Script:
    """Runs `brainstacks ARGUMENTS` in this process; `out` and `err` are what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        self._monkeypatch.setattr(sys, "argv", ["brainstacks", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        self.out, self.err = self._capsys.readouterr()
        return caught.value.code if isinstance(caught.value.code, int) else 0

    def json(self, *arguments: object) -> Any:
        code = self(*arguments, "--json")
        return code, json.loads(self.out)
