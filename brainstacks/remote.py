"""The part of `brainstacks` that speaks to a running server. Needs its admin key, and no torch."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from brainstacks import client
from brainstacks.client import AdminClient, ServerError
from brainstacks.console import (
    ExpectOption,
    FileArgument,
    JsonOption,
    ServerOption,
    check_absent,
    print_json,
    print_table,
    size,
)
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import StackMetadata, check_domain_name
from brainstacks.stacks.document import printable
from brainstacks.stacks.manifest import History, Manifest, Version
from brainstacks.stacks.router_artifact import NOT_ROUTED, inspect_file

KEY_VARIABLE = "BRAINSTACKS_ADMIN_KEY"

app = typer.Typer()

KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--admin-key-file",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help=f"Holds the admin key. Without it ${KEY_VARIABLE} does, or it is asked for.",
    ),
]
DomainArgument = Annotated[str, typer.Argument(help="Of the stack.")]
NameArgument = Annotated[str | None, typer.Argument(metavar="[DOMAIN]", help="Of the stack.")]
RouterOption = Annotated[bool, typer.Option("--router", help="The meta-router instead of a stack.")]


@app.command(rich_help_panel="A running server")
def push(
    file: FileArgument,
    server: ServerOption,
    key_file: KeyOption = None,
    expect: ExpectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a stack or router file on a server: it is tried there, and serves at once."""
    found = inspect_file(file)
    domain = found.metadata.domain if isinstance(found.metadata, StackMetadata) else None
    with _connected(server, key_file) as opened:
        opened.manifest()  # a wrong key or address is told before the file is sent
        with _bar(f"push {file.name}", found.bytes) as progress:
            published = opened.push(file, domain, expect, progress)
        if published.digest != found.digest:
            raise ServerError(f"the server has {published.digest} now, and the file is {found.digest}")
        unrouted = [stack for stack in opened.stacks() if not stack["routable"]]
    changed = [stack for stack in unrouted if domain in (None, stack["domain"])]
    if as_json:
        print_json({**dataclasses.asdict(published), "not_routed": [stack["domain"] for stack in changed]})
        return
    outcome = "published" if published.created else "was there already, and serves"
    where = f"generation {published.generation}, sha256 {published.digest}"
    typer.echo(f"{published.name} version {published.version} {outcome}, {where}")
    for stack in changed:
        typer.echo(f"note: {stack['domain']} version {stack['version']}: {NOT_ROUTED}", err=True)


@app.command(rich_help_panel="A running server")
def pull(
    server: ServerOption,
    name: NameArgument = None,
    router: RouterOption = False,
    version: Annotated[int | None, typer.Option(min=1, help="By default the one that is active.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="A file that is not there yet; by default DOMAIN-VERSION.safetensors.")
    ] = None,
    key_file: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the file of a published version from a server. Its sha256 is checked, and nothing is replaced."""
    domain = _named(name, router)
    with _connected(server, key_file) as opened:
        history = _history(opened.manifest(), domain)
        chosen = history.current if version is None else history.version(version)
        to = output or Path(f"{domain or 'router'}-{chosen.version}.safetensors")
        check_absent(to)
        try:
            with _bar(f"pull {to.name}", chosen.bytes) as progress:
                opened.pull(domain, chosen, to, progress)
        except FileExistsError:  # made by somebody else meanwhile
            check_absent(to)
            raise
    if as_json:
        print_json({"name": domain or "router", "file": str(to), **dataclasses.asdict(chosen)})
    else:
        typer.echo(f"{domain or 'router'} version {chosen.version} is in {to}, sha256 {chosen.digest}")


@app.command(rich_help_panel="A running server")
def activate(
    server: ServerOption,
    version: Annotated[int, typer.Option(min=1, help="The one that is to serve.")],
    name: NameArgument = None,
    router: RouterOption = False,
    key_file: KeyOption = None,
    expect: ExpectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a published version of a stack or of the router serve: roll back, or forward."""
    domain = _named(name, router)
    with _connected(server, key_file) as opened:
        published = opened.activate(domain, version, expect)
    if as_json:
        print_json(dataclasses.asdict(published))
    else:
        typer.echo(f"{published.name} version {published.version} serves, generation {published.generation}")


@app.command(rich_help_panel="A running server")
def pin(
    domain: DomainArgument, server: ServerOption, key_file: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Keep a stack on the device of a server."""
    check_domain_name(domain)
    with _connected(server, key_file) as opened:
        _print_moved(opened.pin(domain), as_json)


@app.command(rich_help_panel="A running server")
def unpin(
    domain: DomainArgument, server: ServerOption, key_file: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Let a stack leave the device of a server when others need its room."""
    check_domain_name(domain)
    with _connected(server, key_file) as opened:
        _print_moved(opened.unpin(domain), as_json)


@app.command(rich_help_panel="A running server")
def status(server: ServerOption, key_file: KeyOption = None, as_json: JsonOption = False) -> None:
    """Show what a server serves, where it is, and what is wrong; exit code 1 if anything is."""
    with _connected(server, key_file) as opened:
        manifest, version, router = opened.manifest(), opened.version(), opened.router()
        stacks = {stack["domain"]: stack for stack in opened.stacks()}
        ready, problems, unrouted = opened.readiness()
    if as_json:
        print_json(
            {
                "server": server,
                "ready": ready,
                "problems": problems,
                "unrouted": unrouted,
                "version": version,
                "registry": manifest.to_document(),
                "stacks": list(stacks.values()),
                "router": router,
            }
        )
    else:
        _print_status(manifest, stacks, router)
        for problem in problems:
            typer.echo(f"problem: {printable(problem)}")
        for domain in unrouted:
            typer.echo(f"note: {printable(domain)}")
    if not ready or problems:
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        what = count if ready else "not ready"
        typer.echo(f"error: {server}: {what}", err=True)
        raise typer.Exit(1)


# --- inside -------------------------------------------------------------------------------------------


@contextmanager
def _connected(server: str, key_file: Path | None) -> Iterator[AdminClient]:
    with AdminClient(server, admin_key(key_file)) as opened:
        yield opened


def admin_key(file: Path | None) -> str:
    """Never an argument: those are in plain view of everyone on the machine.

    Raises:
        ConfigError: there is none.
    """
    if file is not None:
        key = file.read_text(encoding="utf-8").strip()
        if not key or len(key.split()) > 1:
            raise ConfigError(f"{file} holds no key; it is to hold the admin key and nothing else")
        return key
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        return key
    if not sys.stdin.isatty():
        raise ConfigError(f"there is no admin key; set {KEY_VARIABLE}, or name a file with --admin-key-file")
    return str(typer.prompt("admin key", hide_input=True, err=True)).strip()


def _named(domain: str | None, router: bool) -> str | None:
    """The domain, or None for the router."""
    if (domain is None) != router:
        raise typer.BadParameter("give a domain or --router, one of the two")
    if domain is not None:
        check_domain_name(domain)
    return domain


def _history(manifest: Manifest, domain: str | None) -> History[Any]:
    return manifest.routers() if domain is None else manifest.domain(domain)


@contextmanager
def _bar(what: str, total: int) -> Iterator[client.Progress]:
    """On a terminal, how far a transfer is."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True, markup=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(what), total=total)
        yield lambda moved: bar.advance(task, moved)


def _print_moved(stack: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(stack)
    else:
        pinned = "pinned" if stack["pinned"] else "not pinned"
        typer.echo(
            f"{stack['domain']} version {stack['version']} is {pinned}, residency {stack['residency']}"
        )


def _print_status(
    manifest: Manifest, stacks: dict[str, dict[str, Any]], router: dict[str, Any] | None
) -> None:
    table = Table(
        "domain", "serves", "of versions", "residency", "pinned", "routed", "in flight", "size", "digest"
    )
    for name, history in manifest.domains.items():
        stack = stacks.get(name)
        if stack is None:
            table.add_row(name, "nothing", _numbers(history))
            continue
        table.add_row(
            name,
            str(stack["version"]),
            _numbers(history),
            stack["residency"],
            "yes" if stack["pinned"] else "",
            "yes" if stack["routable"] else "no",
            str(stack["in_flight"]),
            size(stack["bytes"]),
            stack["digest"][:12],
        )
    if manifest.router is not None:
        serves = "nothing" if router is None else str(router["version"])
        current = manifest.router.current
        rest = ("", "", "", "", size(current.bytes), current.digest[:12])
        table.add_row("(router)", serves, _numbers(manifest.router), *rest)
    table.caption = f"generation {manifest.generation}"
    print_table(table)


def _numbers(history: History[Any]) -> str:
    versions: tuple[Version, ...] = history.versions
    return ", ".join(str(version.version) for version in versions)
