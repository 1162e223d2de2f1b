"""Signatures for stacks that were made without: new versions of the same weights, and of the router."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

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
from training.rounds.device import take_device
from training.rounds.signature import NoSignature, check_features, make_signature
from training.runs.processes import Processes

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
    their weights are what they were. All files are made before the first is published; ended among them, it
    goes on when it is called again.

    Raises:
        ConfigError: the registry serves a domain that `data` has not, or one whose prompts give no signature;
            or its router reads other features of a prompt.
        IncompatibleArtifact: a stack was made for another base.
    """
    served = registry.snapshot().domains
    if missing := [domain for domain in served if domain not in data]:
        raise ConfigError(
            f"the registry serves {', '.join(missing)}, and the recipe has no data of it; give a recipe with "
            "all of its domains"
        )
    if (router := registry.snapshot().router) is not None:
        config = read_router_metadata(registry.blob_path(router.current.digest)).config
        check_features(recipe.router.sequence_length, config.features, "the registry's router")
    base = load_to_measure(recipe, None, report, Processes(take_device(device)))
    with tempfile.TemporaryDirectory() as made:
        files = [_signed(base, recipe, data[domain], registry, Path(made), report) for domain in served]
        for file in files:
            published = registry.publish(file)
            report(f"{published.name}: version {published.version}")
        _renew_router(registry, Path(made) / "router.safetensors", report)


def _signed(
    base: BaseModel, recipe: Recipe, data: DomainData, registry: Registry, directory: Path, report: Report
) -> Path:
    """The file of a domain's stack with a signature."""
    path = registry.blob_path(registry.snapshot().domain(data.name).current.digest)
    metadata, identity = read_stack_metadata(path), base.identity
    check_base(metadata, identity.fingerprint, identity.dims, identity.layers)
    examples = encode(data.train, base.chat_tokenizer(), recipe.data.max_tokens)
    try:
        signature = make_signature(base, examples, recipe.router.sequence_length)
    except NoSignature as error:
        raise ConfigError(f"{data.name} gets no signature: {error.message}") from error
    report(f"{data.name}: signature of {signature.config.prompts} prompts")
    tensors = {**load_stack(path, metadata).tensors, **signature.tensors()}
    file = directory / f"{data.name}.safetensors"
    save_stack(file, dataclasses.replace(metadata, signature=signature.config), tensors)
    return file


def _renew_router(registry: Registry, file: Path, report: Report) -> None:
    """The router, where there is one, with the digests that now have the weights that it knows."""
    history = registry.snapshot().router
    if history is None:
        return
    path = registry.blob_path(history.current.digest)
    metadata = read_router_metadata(path)
    stacks = {domain: _renewed(registry, domain, digest) for domain, digest in metadata.stacks.items()}
    if stacks == metadata.stacks:
        return
    save_router(file, dataclasses.replace(metadata, stacks=stacks), load_router_tensors(path))
    report(f"router: version {registry.publish_router(file).version}")


def _renewed(registry: Registry, domain: str, digest: str) -> str:
    """The digest that serves `domain`, where its weights are those of `digest`; else `digest`."""
    history = registry.snapshot().domains.get(domain)
    if history is None or history.find(digest) is None:
        return digest
    old, new = (load_stack(registry.blob_path(d)) for d in (digest, history.current.digest))
    same = old.config == new.config and old.tensors.keys() == new.tensors.keys()
    if same and all(torch.equal(tensor, new.tensors[name]) for name, tensor in old.tensors.items()):
        return history.current.digest
    return digest
