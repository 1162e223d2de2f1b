"""What a domain-stack file means: one safetensors file, its tensors, and one JSON document in its header.

    rounds.<n>.layers.<layer>.<projection>.A      [N*r, d_in]    all experts' A, stacked along the rank
    rounds.<n>.layers.<layer>.<projection>.B      [d_out, N*r]   all experts' B, in the same order
    rounds.<n>.layers.<layer>.<projection>.gate   [N, d_in]      the expert gate

Rounds and layers count from 0 without holes; every tensor has the same dtype: F32, F16 or BF16. A file may
have a routing signature besides (`signature_file.py`).
`__metadata__` has the single key `brainstacks`, so that equal contents give equal bytes, and so one digest.
No torch here; `tensors.py` has the torch side. The written format is `stacks_registry/README.md`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainstacks.base_identity import BaseRef
from brainstacks.config import RESERVED_DOMAINS, SignatureConfig, StackConfig
from brainstacks.errors import CorruptBlob, IncompatibleArtifact, InvalidArtifact
from brainstacks.stacks.document import Fields, dump_json, show
from brainstacks.stacks.envelope import (
    FORMAT_VERSION,
    CheckedFile,
    Kind,
    build_config,
    objects,
    open_document,
)
from brainstacks.stacks.signature_file import signature_shapes

MAX_ROUNDS = 64
MAX_DIM = 2**24

EVERYWHERE = {"applies": "everywhere"}
"""What `config` of a file means that does not say where its deltas act; no file says so in words, so that
readers that know of nothing else read it."""

_DOMAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_domain_name(name: str) -> None:
    """Refuse what cannot be a domain's name.

    Raises:
        InvalidArtifact (code `invalid_domain`): not 1..64 of `a-z 0-9 . _ -` starting with a letter or digit,
            holding `..`, or one of `RESERVED_DOMAINS`.
    """
    if not isinstance(name, str) or not _DOMAIN.fullmatch(name) or ".." in name:
        rule = "is 1 to 64 of a-z, 0-9, '.', '_' and '-', starts with a letter or digit and has no '..'"
    elif name in RESERVED_DOMAINS:
        rule = f"is none of {', '.join(sorted(RESERVED_DOMAINS))}, which have a meaning of their own"
    else:
        return
    raise InvalidArtifact(
        f"{show(name)} cannot name a domain: a name {rule}", param="domain", code="invalid_domain"
    )


def is_digest(digest: str) -> bool:
    """Whether `digest` is a sha256 in lower-case hexadecimal."""
    return isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None


def check_digest(digest: str) -> None:
    """Refuse what is not the digest of a file. Raises InvalidArtifact."""
    if not is_digest(digest):
        raise InvalidArtifact(f"{show(digest)} is no digest; a digest is 64 of 0-9 and a-f (sha256)")


def sha256_file(path: Path) -> str:
    """The file's digest: its sha256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_ref(value: Any) -> BaseRef:
    """From a file's document."""
    fields = Fields(value, "'base'")
    ref = BaseRef(fields.text("id"), fields.text("fingerprint"), fields.text("architecture"))
    fields.end()
    return ref


@dataclass(frozen=True)
class Predecessor:
    """A stack that was frozen and active while this one was trained."""

    domain: str
    digest: str

    def __post_init__(self) -> None:
        check_domain_name(self.domain)
        check_digest(self.digest)

    @classmethod
    def from_document(cls, value: Any) -> Predecessor:
        fields = Fields(value, "an entry of 'predecessors'")
        predecessor = cls(fields.text("domain"), fields.text("digest"))
        fields.end()
        return predecessor


@dataclass(frozen=True)
class DataSource:
    """Training data. `digest` and `examples` are None where they were not recorded (imported files)."""

    name: str
    digest: str | None = None
    examples: int | None = None

    @classmethod
    def from_document(cls, value: Any) -> DataSource:
        fields = Fields(value, "an entry of 'data'")
        name, digest = fields.text("name"), fields.nullable(fields.text, "digest")
        source = cls(name, digest, fields.nullable(fields.integer, "examples"))
        fields.end()
        return source


@dataclass(frozen=True)
class StackMetadata:
    """The JSON document of a domain-stack file: all that is needed to rebuild, bind and explain it.

    Attributes:
        domain: its name.
        rounds: number of residual-boosting rounds.
        config: shape of every round.
        dims: projection -> (d_in, d_out), for each of `config.projections`.
        base: what it was trained on.
        null_space: facts of the null-space projection that was folded in; None where there was none.
        predecessors: the stacks it was trained on top of, in order.
        data, hyperparameters, seed, tool_versions: how it was trained.
        losses: one mapping per round, in nats per response token.
        licence, description: for people.
        signature: of the routing signature, where the file has one.

    Raises:
        InvalidArtifact: a value breaks its rule.
    """

    domain: str
    rounds: int
    config: StackConfig
    dims: Mapping[str, tuple[int, int]]
    base: BaseRef
    null_space: Mapping[str, Any] | None = None
    predecessors: tuple[Predecessor, ...] = ()
    data: tuple[DataSource, ...] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    losses: tuple[Mapping[str, Any], ...] = ()
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    description: str = ""
    signature: SignatureConfig | None = None

    def __post_init__(self) -> None:
        check_domain_name(self.domain)
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise InvalidArtifact(f"rounds is {self.rounds}; it lies in 1..{MAX_ROUNDS}")
        if set(self.dims) != set(self.config.projections):
            raise InvalidArtifact(f"dims has {show(list(self.dims))}; it has {list(self.config.projections)}")
        for projection, pair in self.dims.items():
            if len(pair) != 2 or not all(type(n) is int and 1 <= n <= MAX_DIM for n in pair):
                raise InvalidArtifact(
                    f"dims of {projection} is {show(pair)}; it is [d_in, d_out], both in 1..{MAX_DIM}"
                )

    def to_json(self) -> str:
        """The document, every field in its order. Raises InvalidArtifact where a value has no JSON form."""
        document = {"format_version": FORMAT_VERSION, "kind": "stack", **dataclasses.asdict(self)}
        if self.config.applies == EVERYWHERE["applies"]:
            del document["config"]["applies"]
        if self.signature is None:  # readers that know of none read it
            del document["signature"]
        return dump_json(document | {"scaling": self.config.scaling})

    @classmethod
    def from_json(cls, text: str) -> StackMetadata:
        """Parse and check `to_json`'s document.

        Raises:
            InvalidArtifact: another kind or format version; a field is unknown, missing or impossible.
        """
        fields = open_document(text, "stack")
        config = build_config(StackConfig, EVERYWHERE | fields.mapping("config"))
        scaling = fields.number("scaling")
        if abs(scaling - config.scaling) > 1e-6 * config.scaling:
            raise InvalidArtifact(
                f"scaling is {scaling}; alpha / sqrt(rank) is {config.scaling}; correct the one that is wrong"
            )
        signature = fields.optional(fields.mapping, "signature")
        metadata = cls(
            domain=fields.text("domain"),
            rounds=fields.integer("rounds"),
            config=config,
            dims={
                projection: tuple(pair) if isinstance(pair, list) else ()
                for projection, pair in fields.mapping("dims").items()
            },
            base=base_ref(fields.mapping("base")),
            null_space=fields.nullable(fields.mapping, "null_space"),
            predecessors=tuple(Predecessor.from_document(v) for v in fields.items("predecessors")),
            data=tuple(DataSource.from_document(v) for v in fields.items("data")),
            hyperparameters=fields.mapping("hyperparameters"),
            seed=fields.nullable(fields.integer, "seed"),
            losses=tuple(objects(fields, "losses")),
            tool_versions=fields.mapping("tool_versions"),
            licence=fields.text("licence"),
            description=fields.text("description"),
            signature=None if signature is None else build_config(SignatureConfig, signature, "signature"),
        )
        fields.end()
        return metadata


def stack_shapes(metadata: StackMetadata) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and shape of every tensor of the stack that `metadata` describes."""
    config = metadata.config
    total_rank = config.experts * config.rank
    for number in range(metadata.rounds):
        for layer in range(config.layers):
            for projection in config.projections:
                d_in, d_out = metadata.dims[projection]
                name = f"rounds.{number}.layers.{layer}.{projection}"
                yield f"{name}.A", (total_rank, d_in)
                yield f"{name}.B", (d_out, total_rank)
                yield f"{name}.gate", (config.experts, d_in)


StackFile = CheckedFile[StackMetadata]
STACK = Kind(StackMetadata.from_json, stack_shapes, lambda metadata: signature_shapes(metadata.signature))
read_stack_metadata = STACK.read
inspect_stack = STACK.inspect


def check_listed(metadata: StackMetadata, domain: str) -> None:
    """Check that a stored stack is of the domain that the manifest lists it under. Raises CorruptBlob."""
    if metadata.domain != domain:
        raise CorruptBlob(
            f"the stored file is a stack of {metadata.domain!r}, and the manifest lists it under {domain!r}; "
            f"publish a stack of {domain!r}, or restore the manifest from a backup"
        )


def check_base(
    metadata: StackMetadata, fingerprint: str, dims: Mapping[str, tuple[int, int]], layers: int
) -> None:
    """Check that a stack fits the base with these `dims` (projection -> (d_in, d_out)).

    Raises:
        IncompatibleArtifact: it was made for another base; says what differs.
    """
    advice = "publish a stack that was trained on the base in use"
    if metadata.base.fingerprint != fingerprint:
        raise IncompatibleArtifact(
            f"the stack's base is {show(metadata.base.id)}, fingerprint {show(metadata.base.fingerprint)}; "
            f"the base in use has {fingerprint!r}; {advice}"
        )
    if metadata.config.layers != layers:
        raise IncompatibleArtifact(
            f"the stack has {metadata.config.layers} layers; the base in use has {layers}; {advice}"
        )
    for projection, pair in metadata.dims.items():
        if dims.get(projection) != pair:
            raise IncompatibleArtifact(
                f"{projection} of the stack maps {pair[0]} -> {pair[1]}; of the base in use "
                f"{dims.get(projection)}; {advice}"
            )
