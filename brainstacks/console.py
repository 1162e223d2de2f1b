"""What the commands share: their options, and what they print, tables for people and JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from brainstacks.errors import ConfigError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")]
ServerOption = Annotated[
    str, typer.Option("--server", metavar="URL", envvar="BRAINSTACKS_SERVER", help="Of the running server.")
]
RegistryOption = Annotated[
    str,
    typer.Option("--registry", envvar="BRAINSTACKS_REGISTRY", help="Directory or URL of the registry."),
]
FileArgument = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="A stack or router file (.safetensors).")
]
ExpectOption = Annotated[
    int | None,
    typer.Option("--expect", metavar="GENERATION", help="Refuse if the registry is at another generation."),
]
LicencesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--licence", metavar="DOMAIN=LICENCE", help="Of data whose stack's file tells none; repeatable."
    ),
]


def licences_of(given: list[str] | None) -> dict[str, str]:
    """Domain -> licence, of what `--licence` says. Raises typer.BadParameter: one is no DOMAIN=LICENCE."""
    pairs = [(text, *map(str.strip, text.partition("=")[::2])) for text in given or ()]
    for text, name, value in pairs:
        if not (name and value):
            raise typer.BadParameter(f"{text!r} is no DOMAIN=LICENCE", param_hint="--licence")
    return {name: value for _, name, value in pairs}


def check_absent(path: Path) -> None:
    """Refuse to write where something is. Raises ConfigError."""
    if path.exists():
        raise ConfigError(f"{path} is there already; name another with --output, or remove it")


def print_json(value: Mapping[str, Any] | list[Any]) -> None:
    typer.echo(json.dumps(value, indent=1))


def print_table(table: Table) -> None:
    # A pipe has no width, and a table cut at the usual 80 columns is of no use there.
    Console(markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
