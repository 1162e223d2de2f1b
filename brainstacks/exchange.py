"""The part of `brainstacks` that exchanges stacks with PEFT and transformers: files in, files out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brainstacks.base_files import PACKAGED, base_name, locate
from brainstacks.config import Quantization
from brainstacks.console import FileArgument, JsonOption, RegistryOption, check_absent, print_json
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import (
    check_base,
    check_domain_name,
    inspect_stack,
)
from brainstacks.stacks.registry import Registry

PANEL = "PEFT and transformers"
PACKAGED_BASE = next(iter(PACKAGED))

app = typer.Typer()

BaseOption = Annotated[str, typer.Option(help="Of the stacks: a directory, hub id, .gguf file.")]
DirectoryOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="A directory that is not there yet.")
]


@app.command("import-peft", rich_help_panel=PANEL)
def import_peft(
    directory: Annotated[Path, typer.Argument(help="Where PEFT saved the adapter to.")],
    domain: Annotated[str, typer.Option(metavar="NAME", help="Of the stack.")],
    base: BaseOption = PACKAGED_BASE,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file that is not there yet; by default NAME.safetensors."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a PEFT LoRA a stack of one expert: a file that `publish` and `push` take."""
    check_domain_name(domain)
    to = output or Path(f"{domain}.safetensors")
    check_absent(to)
    from brainstacks.base_model import identify_base
    from brainstacks.stacks.peft_import import import_adapter  # both import torch

    file = import_adapter(
        directory, identify_base(base), domain, to, lambda line: typer.echo(f"note: {line}", err=True)
    )
    if as_json:
        print_json({"domain": domain, "file": str(to), "digest": file.digest, "bytes": file.bytes})
    else:
        config = file.metadata.config
        typer.echo(f"{domain} is in {to}, rank {config.rank}, sha256 {file.digest}")


@app.command("export-peft", rich_help_panel=PANEL)
def export_peft(
    file: FileArgument, output: DirectoryOption, base: BaseOption = PACKAGED_BASE, as_json: JsonOption = False
) -> None:
    """Make a stack of one expert, which acts everywhere, a PEFT LoRA.

    Several rounds become one, of the sum of their ranks.
    """
    check_absent(output)
    metadata = inspect_stack(file).metadata
    from brainstacks.base_model import identify_base
    from brainstacks.checkpoint import outline, plain_checkpoint
    from brainstacks.layers.projections import find_sites
    from brainstacks.stacks.peft_export import export_adapter
    from brainstacks.stacks.tensors import load_stack

    identity = identify_base(base)
    check_base(metadata, identity.fingerprint, identity.dims, identity.layers)
    sites = find_sites(outline(plain_checkpoint(locate(base)).directory))
    names = {place: site.name for place, site in sites.items()}
    called = base_name(base) if Path(base).exists() or base in PACKAGED else base
    export_adapter(load_stack(file, metadata), f"the stack of {metadata.domain!r}", called, names, output)
    rank = metadata.rounds * metadata.config.rank
    if as_json:
        print_json({"domain": metadata.domain, "directory": str(output), "rank": rank, "base": called})
    else:
        typer.echo(f"{metadata.domain} is in {output}, a LoRA of rank {rank} for {called}")


@app.command(rich_help_panel=PANEL)
def merge(
    stacks: Annotated[
        str, typer.Option(metavar="NAME=WEIGHT,...", help="The composition: chat=1.0,math=0.5, say.")
    ],
    registry: RegistryOption,
    output: DirectoryOption,
    base: BaseOption = PACKAGED_BASE,
    quantization: Annotated[
        Quantization | None,
        typer.Option(
            help="Start from the values that a server of this quantisation computes with. By default from an "
            "unquantised checkpoint's own, and a GGUF file's own."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the written weights: float32, bfloat16, float16.")
    ] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Add a fixed composition of the registry's stacks to their base: a plain checkpoint.

    Of stacks of one expert that act everywhere.
    """
    check_absent(output)
    weights = _composition(stacks)
    from brainstacks.base_model import identify_base, parse_dtype
    from brainstacks.merging import load_values, merge_into, read_composition, save_checkpoint

    as_dtype = parse_dtype(dtype)
    if as_dtype is None:
        raise ConfigError(f"dtype is {dtype!r}; it is float32, bfloat16 or float16")
    composition = read_composition(Registry(registry), weights, identify_base(base))
    loaded = load_values(base, quantization)
    merge_into(loaded, composition)
    save_checkpoint(loaded, output, as_dtype)
    if as_json:
        print_json({"directory": str(output), "base": loaded.name, "weights": weights, "dtype": dtype})
    else:
        typer.echo(f"{loaded.name} with {stacks} is in {output}, in {dtype}")


def _composition(text: str) -> dict[str, float]:
    """Domain -> weight, of `chat=1.0,math=0.5`."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        domain, _, number = part.strip().partition("=")
        check_domain_name(domain)
        try:
            weight = float(number)
        except ValueError as error:
            raise typer.BadParameter(
                f"{part!r} is no NAME=WEIGHT, as chat=1.0", param_hint="--stacks"
            ) from error
        if domain in weights:
            raise typer.BadParameter(f"{domain!r} is there twice", param_hint="--stacks")
        weights[domain] = weight
    return weights
