"""The console script `brainstacks`: look at, check and change a registry by hand, without a server; in
`exchange`, what goes to and from PEFT; in `remote` and `heat_map`, what is asked of a running server. No GPU.

Exit codes: 0 done; 1 refused, or a problem was found (one line on stderr says which); 2 wrong usage.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from brainstacks import exchange, heat_map, remote
from brainstacks.console import (
    ExpectOption,
    FileArgument,
    JsonOption,
    LicencesOption,
    RegistryOption,
    licences_of,
    print_json,
    print_table,
    size,
)
from brainstacks.errors import BrainstacksError
from brainstacks.stacks.artifact import StackMetadata, check_base
from brainstacks.stacks.document import printable
from brainstacks.stacks.manifest import ROUTER_ENTRY, Published, Version
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.release import PER_DOMAIN
from brainstacks.stacks.release import release as make_release
from brainstacks.stacks.router_artifact import check_router_base, inspect_file
from brainstacks.stacks.verify import verify as problems_of

app = typer.Typer(
    help="Look at, check and change a registry of domain stacks and meta-routers.",
    epilog="Exit codes: 0 done, 1 refused or problems found, 2 wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(remote.app)
app.add_typer(heat_map.app)
app.add_typer(exchange.app)


@app.command("list")
def list_versions(registry: RegistryOption, as_json: JsonOption = False) -> None:
    """Show every published version, and which ones serve."""
    manifest = Registry(registry).snapshot()
    if as_json:
        print_json(manifest.to_document())
        return
    rows = [
        (
            name,
            version,
            version.version == history.active,
            f"{version.rounds} x {version.experts} x r{version.rank}",
        )
        for name, history in manifest.domains.items()
        for version in history.versions
    ]
    table = Table("name", "version", "serves", "rounds x experts x rank", "size", "published", "digest")
    for name, version, active, shape in rows:
        _add_version(table, name, version, active, shape)
    if manifest.router is not None:
        for router_version in manifest.router.versions:
            active = router_version.version == manifest.router.active
            _add_version(table, f"({ROUTER_ENTRY.name})", router_version, active, "")
    table.caption = f"generation {manifest.generation}"
    print_table(table)


@app.command()
def inspect(file: FileArgument, as_json: JsonOption = False) -> None:
    """Check a stack or router file completely and show what it says of itself."""
    found = inspect_file(file)
    document = {
        "digest": found.digest,
        "bytes": found.bytes,
        "kind": "stack" if isinstance(found.metadata, StackMetadata) else "router",
        **json.loads(found.metadata.to_json()),
    }
    if as_json:
        print_json(document)
        return
    table = Table("field", "value")
    for name, value in document.items():
        table.add_row(name, printable(value if isinstance(value, str) else json.dumps(value)))
    print_table(table)


@app.command()
def verify(registry: RegistryOption, as_json: JsonOption = False) -> None:
    """Check every stored version: its bytes, its meaning, its place in the manifest. Changes nothing."""
    opened = Registry(registry)
    problems = problems_of(opened)
    count = len(opened.snapshot().versions())
    if as_json:
        print_json({"versions": count, "problems": [dataclasses.asdict(problem) for problem in problems]})
    elif problems:
        table = Table("name", "version", "digest", "problem")
        for problem in problems:
            table.add_row(problem.name, str(problem.version), problem.digest[:12], printable(problem.message))
        print_table(table)
    else:
        typer.echo(f"{count} versions, all sound")
    if problems:
        typer.echo(f"error: {len(problems)} of {count} versions cannot be served", err=True)
        raise typer.Exit(1)


@app.command()
def publish(
    file: FileArgument,
    registry: RegistryOption,
    base: Annotated[
        str | None,
        typer.Option(help="Refuse the file if it was not made for this base (directory, hub id, .gguf)."),
    ] = None,
    expect: ExpectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a stack or router file as the newest, serving version of its name. The file is copied."""
    found = inspect_file(file)
    if base is not None:
        from brainstacks.base_model import identify_base

        identity = identify_base(base)
        if isinstance(found.metadata, StackMetadata):
            check_base(found.metadata, identity.fingerprint, identity.dims, identity.layers)
        else:
            check_router_base(found.metadata, identity.fingerprint, identity.hidden_size)
    opened = Registry(registry, create=True)
    if isinstance(found.metadata, StackMetadata):
        published = opened.publish(file, expected_generation=expect)
    else:
        published = opened.publish_router(file, expected_generation=expect)
    _print_published([published], as_json)


@app.command("import-reference")
def import_reference(
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Directory with the published manifest.json.")
    ],
    registry: RegistryOption,
    base: Annotated[
        str, typer.Option(help="The base that the stacks were trained on (directory, hub id, .gguf).")
    ],
    rank: Annotated[int, typer.Option(help="Rank of each expert; the layout does not store it.")] = 16,
    alpha: Annotated[float, typer.Option(help="rsLoRA alpha; the layout does not store it.")] = 16.0,
    top_k: Annotated[int, typer.Option(help="Experts per token; the layout does not store it.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Convert stacks and router of the published .pt layout, and publish them in the manifest's order."""
    from brainstacks.base_model import identify_base
    from brainstacks.stacks import legacy  # both import torch, which the other commands do without

    published = legacy.import_reference(
        directory,
        identify_base(base),
        Registry(registry, create=True),
        rank=rank,
        alpha=alpha,
        top_k=top_k,
        note=lambda line: typer.echo(f"note: {line}", err=True),
    )
    _print_published(published, as_json)


@app.command()
def prune(
    registry: RegistryOption,
    keep: Annotated[
        int | None,
        typer.Option(min=0, help="First drop versions but the serving one and the newest KEEP of each name."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Delete stored bytes that no version uses. Reload servers that share the registry first."""
    pruned = Registry(registry).prune(keep)
    if as_json:
        print_json(dataclasses.asdict(pruned))
    else:
        typer.echo(
            f"dropped {pruned.versions} versions, deleted {pruned.blobs} files, freed {size(pruned.bytes)}"
        )


@app.command()
def release(
    registry: RegistryOption,
    directory: Annotated[Path, typer.Argument(help="To be made, and then uploaded to the hub as it is.")],
    licence: LicencesOption = None,
    repository_licence: Annotated[
        str, typer.Option(metavar="ID", help="Of the repository, as the hub names it: apache-2.0, say.")
    ] = PER_DOMAIN,
    as_json: JsonOption = False,
) -> None:
    """Write what serves, with a card, licences and digests, for `hf://OWNER/NAME` to be made of it."""
    made = make_release(
        Registry(registry), directory, licences=licences_of(licence), licence=repository_licence
    )
    if as_json:
        print_json({"directory": str(directory), **made.to_document()})
    else:
        typer.echo(
            f"generation {made.generation} is in {directory}; upload it with "
            f"`hf upload OWNER/NAME {directory} .`, and serve it with --registry hf://OWNER/NAME"
        )


def _add_version(table: Table, name: str, version: Version, active: bool, shape: str) -> None:
    published = datetime.fromtimestamp(version.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    table.add_row(
        name,
        str(version.version),
        "yes" if active else "",
        shape,
        size(version.bytes),
        published,
        version.digest[:12],
    )


def _print_published(published: Iterable[Published], as_json: bool) -> None:
    if as_json:
        print_json([dataclasses.asdict(item) for item in published])
        return
    for item in published:
        outcome = "published" if item.created else "already there"
        where = f"generation {item.generation}, sha256 {item.digest}"
        typer.echo(f"{item.name} version {item.version} {outcome}, {where}")


def main() -> None:
    """Run the console script."""
    try:
        app()
    except BrainstacksError as error:
        sys.exit(_refused(error.message))
    except OSError as error:
        sys.exit(_refused(str(error)))


def _refused(message: str) -> int:
    typer.echo(f"error: {printable(' '.join(message.split()))}", err=True)
    return 1


if __name__ == "__main__":
    main()
