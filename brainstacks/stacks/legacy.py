"""Offline import of the layout in which stacks were first published (`.pt` files), never used by the server.

    manifest.json        {model, domains: [{name, stack_files, num_inner_stacks, ...}], total_stacks}
    <domain>/stack_N.pt  {"<module path>.active_stack.experts.<e>.{A,B}.weight",
                          "<module path>.active_stack.{router,noise_linear}.weight"}: tensor
    meta_router.pt       {state_dict, domain_names, token_dim, n_domains, chat_floor, gate_threshold, ...}

Each domain's files become the rounds of one stack file, and the meta-router a router file bound to them.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brainstacks.base_identity import BaseIdentity
from brainstacks.config import PROJECTIONS, MetaRouterConfig, StackConfig
from brainstacks.errors import ConfigError, InvalidArtifact
from brainstacks.stacks.artifact import DataSource, Predecessor, StackMetadata, check_domain_name
from brainstacks.stacks.document import Fields, parse_json, show
from brainstacks.stacks.legacy_pt import Modules, read_pt, read_round
from brainstacks.stacks.manifest import Published
from brainstacks.stacks.module_names import Note
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import RouterMetadata
from brainstacks.stacks.tensors import save_router, save_stack

SEQUENCE_LENGTH = 256
MID_WEIGHT, LAST_WEIGHT = 0.45, 0.55
"""The router's features as the method defines them; the layout does not store them."""


@dataclass(frozen=True)
class _Domain:
    """One entry of the published manifest."""

    name: str
    files: tuple[Path, ...]
    dataset: str | None
    facts: dict[str, Any]


def import_reference(
    directory: Path,
    base: BaseIdentity,
    registry: Registry,
    *,
    rank: int = 16,
    alpha: float = 16.0,
    top_k: int = 2,
    note: Note = print,
) -> list[Published]:
    """Publish everything in `directory`: its domains in the manifest's order, then its meta-router.

    All files are read and checked before the first is published.

    Args:
        base: what the stacks were trained on; gives layers and dims.
        rank, alpha, top_k: of the stacks; the layout does not store them. The shapes must agree with `rank`.
        note: receives one line for each thing that was dropped or assumed.

    Raises:
        InvalidArtifact: a file is missing or unsound; a key is missing, unknown or misshapen; it is named.
        StorageFull: the registry has no room; domains that were published before stay.
    """
    domains = _read_manifest(directory)
    with tempfile.TemporaryDirectory() as scratch:
        digests: dict[str, str] = {}
        for domain in domains:
            rounds = [
                read_round(path, f"{domain.name}/{path.name}", base, rank, note) for path in domain.files
            ]
            metadata = _stack_metadata(domain, rounds, base, rank, alpha, top_k, digests)
            file = save_stack(Path(scratch, domain.name), metadata, _stack_tensors(rounds))
            digests[domain.name] = file.digest
        router = directory / "meta_router.pt"
        if router.exists():
            _convert_router(router, Path(scratch, "meta_router"), base, digests, note)
        published = [registry.publish(Path(scratch, domain.name)) for domain in domains]
        if router.exists():
            published.append(registry.publish_router(Path(scratch, "meta_router")))
        else:
            note("there is no meta_router.pt: no router was imported")
    return published


def _read_manifest(directory: Path) -> list[_Domain]:
    path = directory / "manifest.json"
    if not path.is_file():
        raise InvalidArtifact(
            "the directory has no manifest.json; name the one that holds the published stacks"
        )
    document = parse_json(path.read_bytes(), "manifest.json")
    fields = Fields(document, "manifest.json")
    domains = [_read_domain(directory, value) for value in fields.items("domains")]
    names = [domain.name for domain in domains]
    if not domains or len(set(names)) != len(names):
        raise InvalidArtifact(
            f"manifest.json lists the domains {show(names)}; it lists each once, and one at least"
        )
    found = sum(len(domain.files) for domain in domains)
    if "total_stacks" in document and (total := fields.integer("total_stacks")) != found:
        raise InvalidArtifact(f"manifest.json says total_stacks {total} and lists {found} files; correct it")
    return domains


def _read_domain(directory: Path, value: Any) -> _Domain:
    fields = Fields(value, "a domain of manifest.json")
    name = fields.text("name")
    check_domain_name(name)
    files = []
    for file in fields.items("stack_files"):
        path = (directory / str(file)).resolve()
        if not path.is_relative_to(directory.resolve()) or not path.is_file():
            raise InvalidArtifact(f"the stack file {show(file)} of {name!r} is not a file in the directory")
        files.append(path)
    if not files:
        raise InvalidArtifact(f"{name!r} lists no stack_files; every domain has at least one")
    if "num_inner_stacks" in value and (number := fields.integer("num_inner_stacks")) != len(files):
        raise InvalidArtifact(
            f"{name!r} says num_inner_stacks {number} and lists {len(files)} files; correct it"
        )
    facts = {key: other for key, other in value.items() if key not in ("name", "stack_files")}
    return _Domain(name, tuple(files), fields.text("dataset") if "dataset" in value else None, facts)


def _stack_tensors(rounds: list[Modules]) -> dict[str, torch.Tensor]:
    """The tensors of a stack file, by name; float32 where the rounds differ in dtype."""
    tensors = dict(_named(rounds))
    dtypes = {tensor.dtype for tensor in tensors.values()}
    kept = dtypes.pop() if len(dtypes) == 1 else torch.float32
    dtype = kept if kept in (torch.float16, torch.bfloat16) else torch.float32
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _named(rounds: list[Modules]) -> Iterator[tuple[str, torch.Tensor]]:
    for number, modules in enumerate(rounds):
        for (layer, projection), parts in modules.items():
            for part, tensor in parts.items():
                yield f"rounds.{number}.layers.{layer}.{projection}.{part}", tensor


def _stack_metadata(
    domain: _Domain,
    rounds: list[Modules],
    base: BaseIdentity,
    rank: int,
    alpha: float,
    top_k: int,
    predecessors: dict[str, str],
) -> StackMetadata:
    experts = {modules[0, PROJECTIONS[0]]["gate"].shape[0] for modules in rounds}
    if len(experts) != 1:
        raise InvalidArtifact(
            f"the stack files of {domain.name!r} have {sorted(experts)} experts; all have as many"
        )
    try:
        config = StackConfig(rank, alpha, experts.pop(), top_k, PROJECTIONS, base.layers)
    except ConfigError as error:
        raise InvalidArtifact(f"{domain.name!r}: {error.message}") from error
    losses = domain.facts.get("val_losses_per_round")
    return StackMetadata(
        domain=domain.name,
        rounds=len(rounds),
        config=config,
        dims={projection: base.dims[projection] for projection in PROJECTIONS},
        base=base.ref,
        predecessors=tuple(Predecessor(name, digest) for name, digest in predecessors.items()),
        data=(DataSource(domain.dataset),) if domain.dataset else (),
        hyperparameters={"published_manifest": domain.facts},
        losses=tuple(
            {"round": number, "before": before, "after": after}
            for number, (before, after) in enumerate(itertools.pairwise(losses))
        )
        if isinstance(losses, list) and len(losses) == len(rounds) + 1
        else (),
        tool_versions={"torch": str(torch.__version__)},
        description="Imported from the published .pt layout",
    )


def _convert_router(
    source: Path, target: Path, base: BaseIdentity, digests: dict[str, str], note: Note
) -> None:
    what = source.name
    saved = read_pt(source, what)
    state = saved.get("state_dict")
    queries = state.get("global_query") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(queries, torch.Tensor) or queries.dim() != 1:
        raise InvalidArtifact(f"{what} has no 'state_dict' with a vector 'global_query'")
    domains, token_dim = saved.get("domain_names"), saved.get("token_dim")
    if not isinstance(domains, list) or not set(map(str, domains)) <= set(digests):
        raise InvalidArtifact(f"{what} routes to {show(domains)}; manifest.json has {', '.join(digests)}")
    if token_dim != base.hidden_size or saved.get("n_domains") != len(domains):
        raise InvalidArtifact(
            f"{what} has token_dim {token_dim!r} and n_domains {saved.get('n_domains')!r}; the base's hidden "
            f"size is {base.hidden_size} and domain_names has {len(domains)}"
        )
    floor, threshold = saved.get("chat_floor"), saved.get("gate_threshold")
    if not isinstance(floor, float) or not isinstance(threshold, float):
        raise InvalidArtifact(
            f"{what} has chat_floor {floor!r} and gate_threshold {threshold!r}; both are floats"
        )
    try:
        config = MetaRouterConfig(
            domains=tuple(domains),
            token_dim=token_dim,
            hidden_dim=queries.shape[0],
            sequence_length=SEQUENCE_LENGTH,
            mid_weight=MID_WEIGHT,
            last_weight=LAST_WEIGHT,
            floors={"chat": floor} if "chat" in domains else {},
            gate_threshold=threshold,
        )
    except ConfigError as error:
        raise InvalidArtifact(f"{what}: {error.message}") from error
    note(
        f"{what}: the layout does not store its features; assumed are the first {SEQUENCE_LENGTH} tokens and "
        f"{MID_WEIGHT} * middle + {LAST_WEIGHT} * last"
    )
    metadata = RouterMetadata(
        config=config,
        stacks={domain: digests[domain] for domain in domains},
        base=base.ref,
        tool_versions={"torch": str(torch.__version__)},
        description="Imported from the published .pt layout",
    )
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise InvalidArtifact(f"{what}: {name!r} of 'state_dict' is {show(tensor)}; it is a tensor")
    save_router(target, metadata, {name: tensor.float() for name, tensor in state.items()})
