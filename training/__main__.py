"""`brainstacks-train`: make stacks and routers offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from brainstacks.errors import BrainstacksError
from brainstacks.stacks.registry import Registry
from training.recipe import load_recipe

app = typer.Typer(
    no_args_is_help=True,
    help="Train domain stacks and their meta-router offline, and publish them to a registry.",
    pretty_exceptions_enable=False,
)

RecipeOption = Annotated[str, typer.Option(help="A shipped recipe's name, or a YAML file.")]
DataOption = Annotated[Path, typer.Option(help="Directory with <domain>/{train,validation}.jsonl.")]
RegistryOption = Annotated[Path, typer.Option(help="Registry to publish to; made when it is not there.")]
RunOption = Annotated[Path, typer.Option(help="Working directory of this run; give it again to resume.")]


@app.callback()
def _commands() -> None:
    """Keeps every command a subcommand."""


@app.command()
def curriculum(
    data: DataOption,
    recipe: RecipeOption = "demo",
    registry: RegistryOption = Path("stacks_registry"),
    run: RunOption = Path("runs/demo"),
) -> None:
    """Train and publish every domain of the recipe, in order. Finished domains are not trained again."""
    from training.outer_loop import run_curriculum

    run_curriculum(load_recipe(recipe), data, Registry(registry, create=True), run)


@app.command()
def router(
    data: DataOption,
    recipe: RecipeOption = "demo",
    registry: RegistryOption = Path("stacks_registry"),
    run: RunOption = Path("runs/demo"),
) -> None:
    """Measure outcomes over all combinations of the registry's stacks, and train and publish the router."""
    from training.router_training import train_router

    train_router(load_recipe(recipe), data, Registry(registry), run)


@app.command()
def evaluate(
    data: DataOption,
    base: Annotated[str, typer.Option(help="The base to serve.")] = "packaged:smollm2-135m-instruct",
    quantization: Annotated[str, typer.Option(help="nf4, int8 or none.")] = "nf4",
    registry: RegistryOption = Path("stacks_registry"),
    limit: Annotated[int | None, typer.Option(help="Most validation records per domain.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file too.")] = None,
) -> None:
    """Answer NLL per domain on the validation split: base, ungated, routed, only the domain's own stack."""
    from training.evaluation import evaluate_modes, show

    results = evaluate_modes(base, quantization, Registry(registry), data, limit)
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    show(results, Console())


@app.command()
def card(
    registry: RegistryOption = Path("stacks_registry"),
    evaluation: Annotated[Path | None, typer.Option(help="What `evaluate --output` wrote.")] = None,
) -> None:
    """Print the registry's model card as Markdown: recipe, seeds, data, losses, licences."""
    from training.card import card as card_of

    results = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation is not None else None
    print(card_of(Registry(registry), results))


def main() -> None:
    """Exit codes: 0 done, 1 refused (one line on stderr says why), 2 wrong usage."""
    try:
        app()
    except BrainstacksError as error:
        print(f"brainstacks-train: {error.message}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
