"""A new domain into a running server: a stack with its signature, trained with the domain's data alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from brainstacks.base_model import identify_base, load_chat_tokenizer
from brainstacks.client import AdminClient, Client, ServerError
from brainstacks.config import MetaRouterConfig, from_mapping
from brainstacks.errors import ConfigError
from brainstacks.stacks.manifest import StackVersion
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import NOT_ROUTED
from brainstacks.stacks.signature_file import holds
from training.curriculum.outer_loop import run_stack
from training.data.domains import prepare
from training.data.encoding import encode
from training.data.records import Record
from training.recipe.recipe import DomainRecipe, FormatName, Recipe, SourceRecipe
from training.rounds.signature import check_features, different_prompts
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
    source = SourceRecipe(f"jsonl:{file}", format=form)
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
        registry: on top of whose stacks it is trained, all of them on where the recipe has `none` of them
            on, and where it is published besides; None: of none.

    Returns:
        False where it learned nothing, and was not published.

    Raises:
        ConfigError: before anything is trained: a signature would not be used on the server, or cannot be
            made; the server has the domain from elsewhere; or as `run_stack`.
        ServerError: the server refuses, or does not answer; or routed requests leave out what it serves.
    """
    (domain,) = recipe.domains
    if registry is not None and recipe.earlier_stacks == "none":
        recipe = dataclasses.replace(recipe, earlier_stacks="all")
    run = RunPaths(path / "training")
    _published(admin, run, domain.name)
    _check_server(recipe, admin, client)
    held_out = _held_out(recipe, domain)
    own = Registry(registry or path / "registry", create=True)
    if run_stack(recipe, domain.name, own, run.path, None, report, device):
        return False
    version = _published(admin, run, domain.name)
    if version is None:
        number = admin.push(run.stack(domain.name), domain.name, None, lambda moved: None).version
        report(f"{domain.name}: version {number} on {admin.url}")
    else:
        report(f"{domain.name}: version {version.version} on {admin.url}, there already; nothing is sent")
    _check_routed(admin, domain.name)
    for line in _routes(client, domain.name, held_out):
        report(line)
    return True


# --- what would be in vain ---------------------------------------------------------------------------


def _published(admin: AdminClient, run: RunPaths, domain: str) -> StackVersion | None:
    """The server's version of `domain` that is this run's stack, whether it serves or not.

    Raises:
        ConfigError: the domain is there, and none of its versions is.
    """
    history = admin.manifest().domains.get(domain)
    if history is None:
        return None
    digest = run.stack_digest(domain)
    found = history.find(digest.read_text(encoding="utf-8").strip()) if digest.is_file() else None
    if found is None:
        raise ConfigError(
            f"{admin.url} has the domain {domain} already, and not of this run; give another name, or make a "
            "new version of it: brainstacks-train stack, then brainstacks push"
        )
    return found


def _check_server(recipe: Recipe, admin: AdminClient, client: Client) -> None:
    """Raises ConfigError, ServerError: a signature would not be used, or a route is refused."""
    served, ours = admin.version()["model"], identify_base(recipe.base)
    if served["fingerprint"] != ours.fingerprint:
        raise ConfigError(
            f"{admin.url} serves {served['name']}, fingerprint {served['fingerprint'][:12]}; the recipe's "
            f"base is {ours.id}, fingerprint {ours.fingerprint[:12]}; give a recipe with the server's base"
        )
    there = served["quantization"]
    if not holds(recipe.quantization, there):
        raise ConfigError(
            f"{admin.url} holds its base in {there}, where prompts look otherwise than in the recipe's "
            f"{recipe.quantization}, and would not route by a signature of it; give a recipe with "
            f"quantization: {there}"
        )
    router = admin.router()
    if router is not None:
        features = from_mapping(MetaRouterConfig, router["config"]).features
        check_features(recipe.router.sequence_length, features, f"the router of {admin.url}")
    client.route(prompt="Hello!")


def _held_out(recipe: Recipe, domain: DomainRecipe) -> list[Record]:
    """Validation records that a training takes. Raises NoSignature: its prompts are too few."""
    data, tokens = prepare(recipe, None, (domain,))[domain.name], recipe.data.max_tokens
    tokenizer = load_chat_tokenizer(recipe.base)
    different_prompts(encode(data.train, tokenizer, tokens), recipe.router.sequence_length)
    taken = {example.id for example in encode(data.validation, tokenizer, tokens)}
    return [record for record in data.validation if record.id in taken]


# --- what came of it ---------------------------------------------------------------------------------


def _check_routed(admin: AdminClient, domain: str) -> None:
    """Raises ServerError, with the server's reasons: routed requests leave the domain out."""
    if not any(stack["routable"] for stack in admin.stacks() if stack["domain"] == domain):
        _, problems, unrouted = admin.readiness()
        why = [line for line in (*problems, *unrouted) if line.startswith((f"{domain} ", f"{domain}:"))]
        raise ServerError("; ".join(why) or f"{domain}: {NOT_ROUTED}")


def _routes(client: Client, domain: str, records: Sequence[Record]) -> Iterator[str]:
    """What the server makes of prompts that the domain held out."""
    routes, refused = [], []
    for record in records:
        try:
            routes.append(client.route(messages=[asdict(message) for message in record.messages]))
        except ServerError as error:
            refused.append(error.message)
    if refused:
        yield f"{domain}: {len(refused)} of {len(records)} prompts got no route: {refused[0]}"
    if routes:
        applied = sum(domain in route["active"] for route in routes)
        by = sorted({str(route["routed_by"].get(domain, "nobody")) for route in routes})
        weight = fmean(route["weights"].get(domain, 0.0) for route in routes)
        gaps = [route["gap"] for route in routes if route["gap"] is not None]
        gap = f", mean gap {fmean(gaps):.2f}" if gaps else ""
        yield (
            f"{domain}: applied to {applied} of {len(routes)} prompts that were held out, decided by "
            f"{', '.join(by)}; mean weight {weight:.2f}{gap}"
        )
