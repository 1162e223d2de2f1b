"""A new domain into a running server: a stack with its signature, trained with the domain's data alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from brainstacks.base_model import identify_base
from brainstacks.client import AdminClient, Client
from brainstacks.errors import ConfigError
from brainstacks.stacks.registry import Registry
from training.curriculum.outer_loop import run_stack
from training.data.domains import prepare
from training.data.formats import format_of
from training.data.records import Record
from training.recipe.recipe import DomainRecipe, FormatName, Recipe, SourceRecipe
from training.runs.paths import RunPaths

Report = Callable[[str], None]


def recipe_for(
    recipe: Recipe, domain: str, file: Path, form: FormatName | None = None, licence: str = ""
) -> Recipe:
    """`recipe`, of the one domain `domain` with the records of `file`.

    Args:
        form: of its rows; None: what the columns of the first one say.

    Raises:
        ConfigError: the name is none that a domain can have.
    """
    source = SourceRecipe(f"jsonl:{file}", format=form or _format_of(file))
    router = dataclasses.replace(recipe.router, floors={})  # of domains that are not in it any more
    return dataclasses.replace(
        recipe, domains=(DomainRecipe(domain, licence=licence, sources=(source,)),), router=router
    )


def add(
    recipe: Recipe,
    admin: AdminClient,
    client: Client,
    path: Path,
    registry: str | Path | None = None,
    report: Report = print,
    device: str = "auto",
) -> bool:
    """Train the one domain of `recipe`, publish it on a server, and tell how it is routed there.

    Args:
        admin, client: of the server; the second asks for routes.
        path: a directory for the run, in `training`, and, without `registry`, for one of its own; started
            anew, it goes on.
        registry: on top of whose stacks it is trained, and where it is published besides; None: of none.

    Returns:
        False where it learned nothing, and was not published.

    Raises:
        ConfigError: the server's base is another than the recipe's; or as `run_stack`.
        ServerError: the server refuses, or does not answer.
    """
    (domain,) = recipe.domains
    admin.manifest()  # a wrong key or address is told before anything is trained
    _check_base(recipe, admin)
    run, own = path / "training", Registry(registry or path / "registry", create=True)
    if run_stack(recipe, domain.name, own, run, None, report, device):
        return False
    published = admin.push(RunPaths(run).stack(domain.name), domain.name, None, lambda moved: None)
    report(f"{domain.name}: version {published.version} on {admin.url}")
    held_out = prepare(recipe, None, recipe.domains)[domain.name].validation
    report(_routed(client, domain.name, held_out))
    return True


def _format_of(file: Path) -> FormatName:
    """By the first row. One that is no JSON object is refused, with its line, where the file is read."""
    with file.open(encoding="utf-8") as rows:
        first = next((line for line in rows if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    return format_of(row if isinstance(row, dict) else {})


def _check_base(recipe: Recipe, admin: AdminClient) -> None:
    served, ours = admin.version()["model"], identify_base(recipe.base)
    if served["fingerprint"] != ours.fingerprint:
        raise ConfigError(
            f"{admin.url} serves {served['name']}, fingerprint {served['fingerprint'][:12]}; the recipe's "
            f"base is {ours.id}, fingerprint {ours.fingerprint[:12]}; give a recipe with the server's base"
        )


def _routed(client: Client, domain: str, records: Sequence[Record]) -> str:
    """What the server makes of prompts that the domain held out."""
    routes = [client.route([asdict(message) for message in record.messages]) for record in records]
    applied = sum(domain in route["active"] for route in routes)
    by = sorted({str(route["routed_by"].get(domain, "nobody")) for route in routes})
    weight = fmean(route["weights"].get(domain, 0.0) for route in routes)
    gaps = [route["gap"] for route in routes if route["gap"] is not None]
    gap = f", mean gap {fmean(gaps):.2f}" if gaps else ""
    return (
        f"{domain}: applied to {applied} of {len(routes)} prompts that were held out, decided by "
        f"{', '.join(by)}; mean weight {weight:.2f}{gap}"
    )
