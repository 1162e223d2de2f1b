"""Options that several commands of `brainstacks-train` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeOption = Annotated[str, typer.Option(help="A shipped recipe's name, or a YAML file.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Directory with <domain>/train.jsonl and, optionally, <domain>/validation.jsonl, "
        "in place of these domains' sources in the recipe."
    ),
]
PublishOption = Annotated[
    str, typer.Option("--registry", help="To publish to, a directory or URL; made when it is not there.")
]
ServedOption = Annotated[
    str, typer.Option("--registry", help="Whose active stacks and router count, a directory or URL.")
]
RunOption = Annotated[Path, typer.Option(help="Working directory of this run; give it again to go on.")]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only print what the run would take: memory, steps, time, the router too."
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, or cuda:N for the GPU number N.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Most validation records per domain.")]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Holds the admin key. Else $BRAINSTACKS_ADMIN_KEY."),
]
