"""The options that several benchmarks share, and the base that they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from benchmarks.instruments.checkout import ROOT
from brainstacks.base_files import base_name, default_quantization
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import Quantization
from brainstacks.errors import BrainstacksError
from training.runs.signals import exit_status

DEMO_REGISTRY = ROOT / "stacks_registry"
DEFAULT_BASE = "packaged:smollm2-135m-instruct"

Rounds = Annotated[int, typer.Option(min=1, help="Rounds; every contestant runs once in each.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Length of the random prompts.")]
RunTokens = Annotated[int, typer.Option(min=2, help="Tokens to generate per row in each run.")]
Base = Annotated[str, typer.Option(help="Base model, named as for the server.")]
Quantize = Annotated[
    str | None,
    typer.Option("--quantization", help="nf4, int8, none or native; by default as a server holds the base."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or one of several, such as cuda:1.")]
Trained = Annotated[
    Path, typer.Option("--registry", help="Trained registry; its cases are left out if it does not fit.")
]
Seed = Annotated[int, typer.Option(help="Of prompts, random stacks and traffic.")]
Output = Annotated[Path, typer.Option(help="Directory of the results.")]


def held(base: str, quantization: str | None) -> str:
    """How `base` is held: as the option says, or as a server would where nobody says it."""
    return quantization or default_quantization(base)


def load(base: str, quantization: str | None, device: str) -> BaseModel:
    """`load_base` with the options' values; nothing is shared with what an earlier call gave."""
    return load_base(base, quantization=cast(Quantization, held(base, quantization)), device=device)


def flags(base: str, quantization: str | None, device: str) -> list[str]:
    """The same, as arguments of the server."""
    return ["--base", base, "--quantization", held(base, quantization), "--device", device]


def asked(base: str, quantization: str | None, device: str, **others: Any) -> dict[str, Any]:
    """What was asked for, for the results; of a base that is a path, the name alone."""
    chosen = {"base": base_name(base), "quantization": held(base, quantization), "device": device}
    return {**chosen, **others}


def positive_list(text: str, what: str) -> list[int]:
    """Numbers from 1 separated by commas. Raises typer.BadParameter."""
    return number_list(text, what, least=1)


def number_list(text: str, what: str, *, least: int = 0) -> list[int]:
    """Numbers from `least` separated by commas. Raises typer.BadParameter."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise typer.BadParameter(f"{text!r} is no list of {what}")
    return found


def some_of(text: str, known: Sequence[str]) -> frozenset[str]:
    """Names separated by commas; none in an empty text. Raises typer.BadParameter: one is not `known`."""
    found = frozenset(text.split(",")) if text else frozenset()
    if not found <= set(known):
        raise typer.BadParameter(f"{text!r} is not some of {','.join(known)}")
    return found


def application(command: Callable[..., None]) -> typer.Typer:
    """A program of one command; what it refuses, and where it was stopped, is a line on stderr."""

    @wraps(command)
    def one_line(**options: Any) -> None:
        try:
            command(**options)
        except BrainstacksError as error:
            typer.echo(error.message, err=True)
            raise typer.Exit(exit_status(error)) from error

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(one_line)
    return app
