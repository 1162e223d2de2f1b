"""`brainstacks-train`: refusals are one line and a status, help teaches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup as Group
from typer.main import get_command
from typer.testing import CliRunner

from brainstacks.errors import ConfigError
from training.__main__ import app, main

COMMANDS = {info.callback.__name__ for info in app.registered_commands if info.callback is not None}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_has_a_help(command: str) -> None:
    found = get_command(app)
    assert isinstance(found, Group)
    options = [p for p in found.commands[command].params if p.name != "help"]
    assert options
    assert [p.name for p in options if not getattr(p, "help", None)] == []


@pytest.mark.parametrize("command", ["curriculum", "stack", "router"])
def test_what_publishes_is_told_where(command: str) -> None:
    """Without, a first try would change the registry that the repository ships."""
    arguments = [command, *(["math"] if command == "stack" else [])]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "Missing option '--registry'" in result.output


def test_a_mistake_that_the_system_finds_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["brainstacks-train", "report", "--registry", str(tmp_path), "--run", str(tmp_path / "file")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


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


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("sign", ["sign", "--registry", "r"]),
        ("add", ["add", "math", "--data", "d", "--server", "http://localhost:1"]),
        ("--dry-run", ["curriculum", "--registry", "r", "--dry-run"]),
        ("--dry-run", ["stack", "math", "--registry", "r", "--dry-run"]),
    ],
)
def test_what_several_processes_would_do_twice_is_refused(
    what: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{what} takes one process, and 2 were started"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_is_status_2() -> None:
    result = CliRunner().invoke(app, ["curriculum", "--no-such-option"])
    assert result.exit_code == 2


def test_help_needs_no_torch() -> None:
    code = "import sys, training.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
