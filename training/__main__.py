"""`brainstacks-train`: make stacks and routers offline."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from brainstacks.console import LicencesOption, licences_of
from brainstacks.errors import BrainstacksError
from brainstacks.stacks.document import printable
from brainstacks.stacks.location import absent
from brainstacks.stacks.registry import Registry
from training.options import (
    DataOption,
    DeviceOption,
    DryRunOption,
    KeyFileOption,
    LimitOption,
    PublishOption,
    RecipeOption,
    RunOption,
    ServedOption,
)
from training.recipe.recipe import FormatName, load_recipe
from training.rounds.allocator import keep_freed_memory
from training.runs.launch import refuse_several
from training.runs.signals import exit_status

EXIT_STATUS = """Exit status: 0 done; 1 refused, or added and not routed to: stderr says why; 2 wrong usage;
3 done, but a domain learned nothing and was not published; 75 stopped by a signal or a full disk: the
same command goes on; 130 a second Ctrl-C, or one in a command that has nothing to keep."""

SHARED = ("curriculum", "stack", "router", "evaluate")
"""Commands that several processes share."""
WIDE = 200
"""Columns of the tables where there is no terminal."""

app = typer.Typer(
    no_args_is_help=True,
    help="Train domain stacks and their meta-router offline, and publish them to a registry.",
    epilog=EXIT_STATUS,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands(context: typer.Context) -> None:
    if context.invoked_subcommand not in SHARED:
        refuse_several(str(context.invoked_subcommand))
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


@app.command()
def data(recipe: RecipeOption = "demo", data: DataOption = None) -> None:
    """Report the recipe's data: counts, lengths, what is cut or left out, what domains share."""
    from brainstacks.base_model import load_chat_tokenizer
    from training.data.domains import prepare
    from training.data.report import report

    plan = load_recipe(recipe)
    report(prepare(plan, data), load_chat_tokenizer(plan.base), plan.data.max_tokens).show(_console())


@app.command()
def curriculum(
    registry: PublishOption,
    data: DataOption = None,
    recipe: RecipeOption = "demo",
    run: RunOption = Path("runs/demo"),
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Train and publish every domain of the recipe, in order.

    In several processes: `torchrun --standalone --nproc-per-node N -m -- training curriculum ...`.
    """
    plan = load_recipe(recipe)
    if dry_run:
        refuse_several("--dry-run")
        from training.curriculum.dry_run import dry_run as estimate

        estimate(plan, _console(), device)
        return
    from training.curriculum.outer_loop import run_curriculum

    _finish(run_curriculum(plan, Registry(registry, create=True), run, data, device=device))


@app.command()
def stack(
    domain: Annotated[str, typer.Argument(help="A domain of the recipe.")],
    registry: PublishOption,
    data: DataOption = None,
    recipe: RecipeOption = "demo",
    run: RunOption = Path("runs/stack"),
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Train one domain on top of what the registry serves, and publish it: add a skill.

    It takes the data of this domain alone.
    """
    plan = load_recipe(recipe)
    if dry_run:
        refuse_several("--dry-run")
        from training.curriculum.dry_run import dry_run as estimate

        served = {} if absent(registry) else Registry(registry).snapshot().domains
        rounds = {name: history.current.rounds for name, history in served.items()}
        estimate(plan, _console(), device, plan.domain(domain).name, rounds)
        return
    from training.curriculum.outer_loop import run_stack

    _finish(run_stack(plan, domain, Registry(registry, create=True), run, data, device=device))


@app.command()
def add(
    domain: Annotated[str, typer.Argument(help="Name of the new domain.")],
    data: Annotated[Path, typer.Option(dir_okay=False, help="Its records, a JSON object a line.")],
    server: Annotated[str, typer.Option(help="A running server, http://HOST:PORT.")],
    form: Annotated[
        FormatName | None, typer.Option("--format", help="Of the records; by default as the first looks.")
    ] = None,
    recipe: RecipeOption = "add",
    licence: Annotated[str, typer.Option(help="Of the records, for the registry's card.")] = "",
    registry: Annotated[
        str | None,
        typer.Option(help="Train on top of all that it serves, and publish there too; by default on none."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Working directory, runs/DOMAIN by default; again to go on.")
    ] = None,
    key_file: KeyFileOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Bring a new domain into a running server with its records alone: train a stack, upload it with a
    signature, tell how the server routes what was held out.

    A server with API keys is asked for routes with $BRAINSTACKS_API_KEY.
    """
    from brainstacks.client import AdminClient, Client
    from brainstacks.remote import admin_key
    from training.curriculum.adding import add as add_domain
    from training.curriculum.adding import recipe_for

    plan = recipe_for(load_recipe(recipe), domain, data, form, licence)
    with (
        AdminClient(server, admin_key(key_file)) as admin,
        Client(server, os.environ.get("BRAINSTACKS_API_KEY", "")) as client,
    ):
        learned = add_domain(plan, admin, client, run or Path("runs") / domain, registry, device=device)
    _finish(() if learned else (domain,))


@app.command()
def sign(
    registry: PublishOption,
    data: DataOption = None,
    recipe: RecipeOption = "demo",
    device: DeviceOption = "auto",
) -> None:
    """Give the stacks that a registry serves signatures: new versions of the same weights, and of its router.

    By them the gap is told, and new domains are told from them.
    """
    from training.curriculum.signing import sign as sign_stacks
    from training.data.domains import prepare

    sign_stacks(plan := load_recipe(recipe), prepare(plan, data), Registry(registry), device=device)


@app.command()
def router(
    registry: PublishOption,
    data: DataOption = None,
    recipe: RecipeOption = "demo",
    run: RunOption = Path("runs/demo"),
    device: DeviceOption = "auto",
) -> None:
    """Measure outcomes over all combinations of the registry's stacks; train and publish the router.

    What was measured is kept: after a new domain or a new version, only combinations with it are measured.
    """
    from training.data.domains import prepare
    from training.router.training import train_router

    plan = load_recipe(recipe)
    train_router(plan, prepare(plan, data), Registry(registry), run, device=device)


@app.command()
def evaluate(
    data: DataOption = None,
    recipe: RecipeOption = "demo",
    registry: ServedOption = "stacks_registry",
    run: RunOption = Path("runs/demo"),
    limit: LimitOption = None,
    oracle_limit: Annotated[
        int, typer.Option(min=0, help="Records per domain on which the oracle is measured: 2^D passes each.")
    ] = 16,
    lm_eval: Annotated[
        list[str] | None, typer.Option("--lm-eval", help="An lm-eval task to run in three modes; repeatable.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--no-chat",
            help="Put lm-eval's prompts into the base's chat template, which stacks and router were trained "
            "on, or leave them plain.",
        ),
    ] = True,
    device: DeviceOption = "auto",
) -> None:
    """Answer NLL per domain: base, ungated, routed, only the own stack, oracle; and what the router chose.

    With the run's forgetting matrix also average, backward transfer and forgetting. Writes evaluation.json
    to the run's directory.
    """
    from training.evaluation.run import evaluate_run

    plan = load_recipe(recipe)
    evaluate_run(plan, data, registry, run, _console(), limit, oracle_limit, lm_eval or (), chat, device)


@app.command()
def report(
    registry: ServedOption = "stacks_registry",
    run: RunOption = Path("runs/demo"),
) -> None:
    """Write report.html to the run's directory: one page with the run's plots and figures."""
    from training.report.report import write_report

    print(write_report(run, Registry(registry)))


@app.command()
def card(
    registry: ServedOption = "stacks_registry",
    evaluation: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="evaluation.json, as `evaluate` writes it."),
    ] = None,
    licence: LicencesOption = None,
    downstream: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Results of tasks, as `python -m benchmarks.downstream` writes them.",
        ),
    ] = None,
) -> None:
    """Print the registry's model card as Markdown: recipe, seeds, data, losses, licences."""
    from training.evaluation.downstream import Downstream
    from training.evaluation.evaluation import Evaluation
    from training.report.card import card as card_of
    from training.runs.stored import read_as

    found = read_as(evaluation, Evaluation.from_dict) if evaluation is not None else None
    tasks = read_as(downstream, Downstream.from_dict) if downstream is not None else None
    print(printable(card_of(Registry(registry), found, licences_of(licence), tasks)))


def _console() -> Console:
    """Tables in a file or a pipe are as wide as they need."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _finish(empty: tuple[str, ...]) -> None:
    if empty:
        raise typer.Exit(3)


def main() -> None:
    """Run a command; see `EXIT_STATUS`."""
    try:
        app()
    except BrainstacksError as error:
        print(f"brainstacks-train: {printable(error.message)}", file=sys.stderr)
        raise SystemExit(exit_status(error)) from error
    except OSError as error:  # no permission, say: the system's words name the file
        print(f"brainstacks-train: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
