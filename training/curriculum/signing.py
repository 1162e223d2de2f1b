"""Signatures for stacks that were made without: new versions of the same weights, and of the router."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import check_base, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_router_tensors, load_stack, save_router, save_stack
from training.data.domains import DomainData
from training.data.encoding import encode
from training.recipe.recipe import Recipe
from training.rounds.compute import load_to_measure
from training.rounds.signature import LEAST_PROMPTS, make_signature

Report = Callable[[str], None]


def sign(
    recipe: Recipe,
    data: Mapping[str, DomainData],
    registry: Registry,
    report: Report = print,
    device: str = "auto",
) -> None:
    """Publish each stack that `registry` serves again, with a signature of its domain's training prompts.

    The router is published again too, so that it goes on routing to the stacks that it was trained with:
    their weights are what they were.

    Raises:
        ConfigError: the registry serves a domain that `data` has not, or one with too few prompts.
        IncompatibleArtifact: a stack was made for another base.
    """
    served = registry.snapshot().domains
    if missing := [domain for domain in served if domain not in data]:
        raise ConfigError(
            f"the registry serves {', '.join(missing)}, and the recipe has no data of it; give a recipe with "
            "all of its domains"
        )
    base = load_to_measure(recipe, None, report, device)
    with tempfile.TemporaryDirectory() as made:
        renewed = {
            domain: _sign(base, recipe, data[domain], registry, Path(made) / f"{domain}.safetensors", report)
            for domain in served
        }
        _renew_router(registry, renewed, Path(made) / "router.safetensors", report)


def _sign(
    base: BaseModel, recipe: Recipe, data: DomainData, registry: Registry, file: Path, report: Report
) -> tuple[str, str]:
    """The digests of a domain's stack, before and after."""
    digest = registry.snapshot().domain(data.name).current.digest
    path = registry.blob_path(digest)
    metadata, identity = read_stack_metadata(path), base.identity
    check_base(metadata, identity.fingerprint, identity.dims, identity.layers)
    examples = encode(data.train, base.chat_tokenizer(), recipe.data.max_tokens)
    signature = make_signature(base, examples)
    if signature is None:
        raise ConfigError(
            f"{data.name} has {len(examples)} training prompts that fit, which have to be {LEAST_PROMPTS} or "
            "more, and not all alike; give more data"
        )
    tensors = {**load_stack(path, metadata).tensors, **signature.tensors()}
    save_stack(file, dataclasses.replace(metadata, signature=signature.config), tensors)
    published = registry.publish(file)
    report(f"{data.name}: version {published.version}, signature of {signature.config.prompts} prompts")
    return digest, published.digest


def _renew_router(
    registry: Registry, renewed: Mapping[str, tuple[str, str]], file: Path, report: Report
) -> None:
    """The router, where there is one, with the new digests of the stacks that it knows."""
    history = registry.snapshot().router
    if history is None:
        return
    path = registry.blob_path(history.current.digest)
    metadata = read_router_metadata(path)
    after = dict(renewed.values())
    stacks = {domain: after.get(digest, digest) for domain, digest in metadata.stacks.items()}
    if stacks == metadata.stacks:
        return
    save_router(file, dataclasses.replace(metadata, stacks=stacks), load_router_tensors(path))
    report(f"router: version {registry.publish_router(file).version}")
