"""What a router file means: the meta-router's network and everything it needs to mean the same when served.

Same container and conventions as a stack file (`artifact.py`); the tensors are the network's state dict.
No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainstacks.base_identity import BaseRef
from brainstacks.config import MetaRouterConfig
from brainstacks.errors import IncompatibleArtifact, InvalidArtifact
from brainstacks.stacks.artifact import (
    DataSource,
    StackFile,
    base_ref,
    check_digest,
    check_domain_name,
    inspect_stack,
)
from brainstacks.stacks.document import Fields, dump_json, parse_json, show
from brainstacks.stacks.envelope import (
    FORMAT_VERSION,
    CheckedFile,
    Kind,
    build_config,
    metadata_text,
    open_document,
)
from brainstacks.stacks.safetensors_file import read_header

NOT_ROUTED = (
    "no router in force was trained with it, and its file has no signature that can be used here, so "
    "routed requests leave it out; ask for it by name or by fixed weights, or publish it with a signature "
    "(brainstacks-train sign), or a router that was trained with it (PUT /admin/router)"
)
"""What is to be said of a stack that nothing routes to."""


@dataclass(frozen=True)
class RouterMetadata:
    """The JSON document of a router file.

    Attributes:
        config: the network's shape, its features and its policy.
        stacks: domain -> digest of the stack that the router was trained with, for each of `config.domains`.
        base: what it was trained on.
        hyperparameters, data, seed, metrics, tool_versions: how it was trained and how it did.
        licence, description: for people.

    Raises:
        InvalidArtifact: a value breaks its rule.
    """

    config: MetaRouterConfig
    stacks: Mapping[str, str]
    base: BaseRef
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[DataSource, ...] = ()
    seed: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    description: str = ""

    def knows(self, domain: str, digest: str) -> bool:
        """Whether it routes to the stack with this digest: it was trained with that very one."""
        return self.stacks.get(domain) == digest

    def __post_init__(self) -> None:
        for domain in self.config.domains:
            check_domain_name(domain)
        for name in ("mid_weight", "last_weight", "dropout"):
            value = getattr(self.config, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise InvalidArtifact(f"{name} is {show(value)}; it is a number in 0..1")
        if set(self.stacks) != set(self.config.domains):
            raise InvalidArtifact(
                f"stacks names {show(list(self.stacks))}; it names the router's domains {self.config.domains}"
            )
        for digest in self.stacks.values():
            check_digest(digest)

    def to_json(self) -> str:
        """The document, every field in its order. Raises InvalidArtifact where a value has no JSON form."""
        return dump_json({"format_version": FORMAT_VERSION, "kind": "router", **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> RouterMetadata:
        """Parse and check `to_json`'s document.

        Raises:
            InvalidArtifact: another kind or format version; a field is unknown, missing or impossible.
        """
        fields = open_document(text, "router")
        metadata = cls(
            config=build_config(MetaRouterConfig, fields.mapping("config")),
            stacks=fields.mapping("stacks"),
            base=base_ref(fields.mapping("base")),
            hyperparameters=fields.mapping("hyperparameters"),
            data=tuple(DataSource.from_document(value) for value in fields.items("data")),
            seed=fields.nullable(fields.integer, "seed"),
            metrics=fields.mapping("metrics"),
            tool_versions=fields.mapping("tool_versions"),
            licence=fields.text("licence"),
            description=fields.text("description"),
        )
        fields.end()
        return metadata


def router_shapes(config: MetaRouterConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the network: D domains, hidden width h, token width d."""
    D, h, d = len(config.domains), config.hidden_dim, config.token_dim
    yield "domain_queries", (D, h)
    yield "global_query", (h,)
    yield "log_temperature", (1,)
    yield "token_proj.weight", (h, d)
    yield "token_proj.bias", (h,)
    for norm in ("token_ln", "ctx_ln", "global_ln"):
        yield f"{norm}.weight", (h,)
        yield f"{norm}.bias", (h,)
    yield "ff.0.weight", (h, 2 * h)
    yield "ff.0.bias", (h,)
    yield "ff.3.weight", (h,)
    yield "ff.3.bias", (h,)
    yield "ff.4.weight", (h, h)
    yield "ff.4.bias", (h,)
    yield "out.weight", (1, h)
    yield "out.bias", (1,)


RouterFile = CheckedFile[RouterMetadata]
ROUTER = Kind(RouterMetadata.from_json, lambda metadata: router_shapes(metadata.config))
read_router_metadata = ROUTER.read
inspect_router = ROUTER.inspect


def inspect_file(path: Path) -> StackFile | RouterFile:
    """Check a file of either kind completely.

    Raises:
        InvalidArtifact: the file is neither a sound stack nor a sound router.
    """
    document = parse_json(metadata_text(read_header(path)), "the metadata")
    kind = Fields(document, "the metadata").text("kind")
    return inspect_router(path) if kind == "router" else inspect_stack(path)


def check_router_base(metadata: RouterMetadata, fingerprint: str, hidden_size: int) -> None:
    """Check that a router fits the base with this fingerprint and width of hidden states.

    Raises:
        IncompatibleArtifact: it was made for another base; says what differs.
    """
    advice = "publish a router that was trained on the base in use"
    if metadata.base.fingerprint != fingerprint:
        raise IncompatibleArtifact(
            f"the router's base is {show(metadata.base.id)}, fingerprint {show(metadata.base.fingerprint)}; "
            f"the base in use has {fingerprint!r}; {advice}"
        )
    if metadata.config.token_dim != hidden_size:
        raise IncompatibleArtifact(
            f"the router reads hidden states of width {metadata.config.token_dim}; the base in use has "
            f"{hidden_size}; {advice}"
        )


def check_routed(metadata: RouterMetadata, domains: Container[str]) -> None:
    """Raises IncompatibleArtifact: the router routes to domains that are none of `domains`."""
    if unknown := [name for name in metadata.config.domains if name not in domains]:
        raise IncompatibleArtifact(
            f"the router routes to {', '.join(unknown)}, which the registry does not have; publish "
            "their stacks first"
        )
