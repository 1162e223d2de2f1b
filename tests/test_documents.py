"""What the pages tell their readers to type is there, and where they lead exists.

The commands of `curl` and the Python of the README run for real in `test_end_to_end.py`, the guide to a new
domain in the soak `guide`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from pydantic_settings import CliApp

from brainstacks.cli import app as registry_app
from server.settings import Settings
from tests.documents import PAGES, ROOT, commands, page_id, steps
from training.__main__ import app as training_app

KNOWN = (
    *("make", "curl", "brainstacks", "brainstacks-serve", "brainstacks-train", "python"),
    *("torchrun", "mkdir", "cd", "cp", "export", "docker", "kubectl"),
)

pages = pytest.mark.parametrize("page", PAGES, ids=page_id)


@pages
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pages
def test_every_command_is_of_a_kind_that_some_test_runs_or_reads(page: Path) -> None:
    shown = [text for what, text in steps(page.read_text(encoding="utf-8")) if what == "run"]
    assert len(commands(page, *KNOWN)) == len(shown)


@pages
def test_every_target_of_make_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"`make ([\w-]+)", page.read_text(encoding="utf-8"))
    named += [command.split()[1] for command in commands(page, "make")]
    assert set(named) <= targets


@pages
def test_every_manifest_that_is_to_be_applied_exists(page: Path) -> None:
    for command in commands(page, "docker", "kubectl"):
        for path in re.findall(r" -[fk] (\S+)", command):
            assert (ROOT / path).exists(), path


@pages
def test_every_option_of_the_server_is_one(page: Path) -> None:
    for command in commands(page, "brainstacks-serve"):
        given = shlex.split(command, comments=True)[1:]
        assert CliApp.run(Settings, cli_args=given).model_fields_set or not given, command


@pages
def test_every_command_on_registries_stacks_and_training_is_well_formed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    groups = {
        "brainstacks": typer.main.get_command(registry_app).commands,  # type: ignore[attr-defined]  # a group has them
        "brainstacks-train": typer.main.get_command(training_app).commands,  # type: ignore[attr-defined]
    }
    for program, *words in (shlex.split(command, comments=True) for command in commands(page, *groups)):
        name, arguments = words[0], words[1:]
        for word in arguments:  # files that have to be there
            if word.endswith((".safetensors", ".json")):
                Path(word).parent.mkdir(parents=True, exist_ok=True)
                Path(word).touch()
        assert groups[program][name].make_context(name, arguments).command.name == name


@pages
def test_every_module_that_is_to_be_run_exists(page: Path) -> None:
    for module in re.findall(r"python -m ([\w.]+\w)", page.read_text(encoding="utf-8")):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
