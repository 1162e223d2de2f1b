"""`brainstacks-train`: refusals are one line and a status, help teaches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.__main__ import app, main

COMMANDS = ("curriculum", "router", "evaluate")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in ("--data", "--registry"):
        assert option in result.output


def test_a_refusal_is_one_line_on_stderr_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["brainstacks-train", "curriculum", "--data", str(tmp_path), "--recipe", "dmeo"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--registry", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("brainstacks-train: no recipe 'dmeo'")
    assert error.count("\n") == 1


def test_wrong_usage_is_status_2() -> None:
    result = CliRunner().invoke(app, ["curriculum", "--no-such-option"])
    assert result.exit_code == 2


def test_help_needs_no_torch() -> None:
    code = "import sys, training.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
