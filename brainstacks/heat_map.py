"""The command that shows on a terminal which stack moved which token."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.style import Style
from rich.table import Table
from rich.text import Text

from brainstacks.client import Client
from brainstacks.console import JsonOption, ServerOption, print_json, print_table
from brainstacks.stacks.document import printable

FULL = 1.0
"""Nats at which a colour is at its strongest."""

app = typer.Typer()


@app.command(rich_help_panel="A running server")
def attribute(
    prompt: Annotated[str, typer.Argument(help="A user's message.")],
    completion: Annotated[str, typer.Argument(help="An answer to it, from anywhere.")],
    server: ServerOption,
    model: Annotated[
        str | None, typer.Option(help="As in requests; by default the router composes for the prompt.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which stack moved which token of an answer: what each adds to its log-probability, in nats."""
    with Client(server, os.environ.get("BRAINSTACKS_API_KEY", "").strip()) as opened:
        found = opened.attribution(prompt, completion, model)
    if as_json:
        print_json(found)
    else:
        print_table(_table(found))


def _table(found: dict[str, Any]) -> Table:
    """A row per token: its log-probability under the base, what the composition adds, and what of that goes
    with each stack."""
    domains = list(found["sums"]["without"])
    table = Table("token", "base", "composed", *domains)
    for column in table.columns[1:]:
        column.justify = "right"
    for token in found["tokens"]:
        table.add_row(f'"{printable(token["text"])}"', *_figures(token, domains))
    table.add_section()
    table.add_row("all", *_figures(found["sums"], domains))
    weights = found["routing"]["weights"]
    table.caption = ", ".join(f"{name} {weights[name]:.2f}" for name in domains) or "no stacks"
    return table


def _figures(one: dict[str, Any], domains: list[str]) -> list[Text]:
    shares = [one["composed"] - one["without"][name] for name in domains]
    moved = [_coloured(f"{share:+.2f}", share) for share in shares]
    gain = one["composed"] - one["base"]
    return [Text(f"{one['base']:.2f}"), _coloured(f"{one['composed']:.2f}", gain), *moved]


def _coloured(text: str, nats: float) -> Text:
    """Green where a token became likelier, red where it became less so."""
    strength = round(150 * min(1.0, abs(nats) / FULL))
    colour = f"rgb({0 if nats > 0 else strength},{strength if nats > 0 else 0},0)"
    return Text(text, Style(color="white", bgcolor=colour) if strength > 7 else Style())
