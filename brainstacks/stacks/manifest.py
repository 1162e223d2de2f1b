"""The manifest: what a registry has published, in which versions, and which of them serve. Immutable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from brainstacks.errors import CorruptBlob, DomainNotFound, InvalidArtifact, NotFound, VersionNotFound
from brainstacks.stacks.artifact import check_digest, check_domain_name
from brainstacks.stacks.document import MAX_INTEGER, Fields, dump_json, parse_json, show

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Version:
    """One published file.

    Attributes:
        version: its number, counted per name from 1 and never given twice.
        digest: sha256 of its bytes.
        bytes: its size.
        created: Unix seconds at which it was published.
    """

    version: int
    digest: str
    bytes: int
    created: int


@dataclass(frozen=True)
class StackVersion(Version):
    """One published version of a domain stack, with the shape that is shown in lists."""

    rounds: int
    rank: int
    experts: int


@dataclass(frozen=True)
class Published:
    """Outcome of a change to the registry. `created` is False when the same bytes were there already."""

    name: str
    version: int
    digest: str
    generation: int
    created: bool

    @staticmethod
    def of(name: str, history: History[Any], generation: int, *, created: bool = False) -> Published:
        """Of the version that serves now."""
        current = history.current
        return Published(name, current.version, current.digest, generation, created)


V = TypeVar("V", bound=Version)


@dataclass(frozen=True)
class History(Generic[V]):
    """All versions of one name.

    Attributes:
        active: number of the version that serves.
        last_version: highest number ever given, also to versions that are gone.
        versions: oldest first; never empty.
    """

    active: int
    last_version: int
    versions: tuple[V, ...]

    @property
    def current(self) -> V:
        """The version that serves."""
        return self.version(self.active)

    def version(self, number: int) -> V:
        """Version `number`. Raises VersionNotFound."""
        for version in self.versions:
            if version.version == number:
                return version
        known = ", ".join(str(version.version) for version in self.versions)
        raise VersionNotFound(f"there is no version {show(number)}; there are {known}")

    def find(self, digest: str) -> V | None:
        """The version with these bytes, if there is one."""
        return next((version for version in self.versions if version.digest == digest), None)

    def activated(self, number: int) -> History[V]:
        """This history with version `number` serving. Raises VersionNotFound."""
        return dataclasses.replace(self, active=self.version(number).version)

    def published(self, version: V) -> History[V]:
        """This history with the bytes of `version` serving: itself when they do already, an older version
        when those are its bytes, and else `version` added."""
        known = self.find(version.digest)
        if known is None:
            return History(version.version, version.version, (*self.versions, version))
        return self.activated(known.version)

    def pruned(self, keep: int) -> History[V]:
        """This history without versions that are neither serving nor among the newest `keep`."""
        newest = {version.version for version in self.versions[-keep:]} if keep else set()
        kept = tuple(v for v in self.versions if v.version == self.active or v.version in newest)
        return dataclasses.replace(self, versions=kept)


@dataclass(frozen=True)
class Pruned:
    """What `Registry.prune` removed: versions from the manifest, blobs and bytes from the store."""

    versions: int
    blobs: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A registry's state at one generation.

    Attributes:
        generation: counts the changes; 0 is the empty registry.
        domains: in the order of their first publication.
        router: versions of the meta-router, or None.
        retired: deleted domain -> the last version number it had.
    """

    generation: int = 0
    domains: Mapping[str, History[StackVersion]] = field(default_factory=dict)
    router: History[Version] | None = None
    retired: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", MappingProxyType(dict(self.domains)))
        object.__setattr__(self, "retired", MappingProxyType(dict(self.retired)))

    def domain(self, name: str) -> History[StackVersion]:
        """Raises DomainNotFound."""
        if name not in self.domains:
            known = ", ".join(self.domains) or "none yet"
            raise DomainNotFound(f"there is no domain {show(name)}; published are {known}")
        return self.domains[name]

    def routers(self) -> History[Version]:
        """Raises NotFound where no router was ever published."""
        if self.router is None:
            raise NotFound("the registry has no router; publish one")
        return self.router

    @property
    def serving(self) -> tuple[dict[str, str], str | None]:
        """Digests of what serves: domain -> its stack's, and the router's, where there is one."""
        stacks = {name: history.current.digest for name, history in self.domains.items()}
        return stacks, self.router.current.digest if self.router else None

    def versions(self) -> list[Version]:
        """Every version that is listed, of stacks and of the router."""
        stacks: list[Version] = [v for history in self.domains.values() for v in history.versions]
        return [*stacks, *(self.router.versions if self.router else ())]

    def referenced(self) -> frozenset[str]:
        """Digests of every version that is listed."""
        return frozenset(version.digest for version in self.versions())

    def next_version(self, name: str) -> int:
        """The number that the next version of domain `name` gets; never one that was given before."""
        history = self.domains.get(name)
        return (history.last_version if history else self.retired.get(name, 0)) + 1

    def with_domain(self, name: str, history: History[StackVersion]) -> Manifest:
        """This manifest with `history` for domain `name`, in its place or at the end."""
        retired = {other: last for other, last in self.retired.items() if other != name}
        return dataclasses.replace(self, domains={**self.domains, name: history}, retired=retired)

    def without_domain(self, name: str) -> Manifest:
        """This manifest with domain `name` retired. Raises DomainNotFound."""
        retired = {**self.retired, name: self.domain(name).last_version}
        domains = {other: history for other, history in self.domains.items() if other != name}
        return dataclasses.replace(self, domains=domains, retired=retired)

    def pruned(self, keep: int) -> Manifest:
        """This manifest with only the serving version and the newest `keep` of each name."""
        domains = {name: history.pruned(keep) for name, history in self.domains.items()}
        router = self.router.pruned(keep) if self.router else None
        return dataclasses.replace(self, domains=domains, router=router)

    def to_document(self) -> dict[str, Any]:
        """This manifest as plain JSON values, as they are stored."""
        return {
            "format_version": FORMAT_VERSION,
            "generation": self.generation,
            "domains": {name: dataclasses.asdict(history) for name, history in self.domains.items()},
            "router": dataclasses.asdict(self.router) if self.router else None,
            "retired": dict(self.retired),
        }

    def to_bytes(self) -> bytes:
        return (dump_json(self.to_document(), indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Raises CorruptBlob when `content` is not a manifest, or one of a later format."""
        try:
            return cls._from_fields(Fields(parse_json(content, "the manifest"), "the manifest"))
        except InvalidArtifact as error:
            raise CorruptBlob(
                f"the registry's manifest is damaged: {error}; restore it from a backup"
            ) from error

    @classmethod
    def _from_fields(cls, fields: Fields) -> Manifest:
        if (version := fields.integer("format_version")) > FORMAT_VERSION:
            raise CorruptBlob(
                f"the registry's manifest has format version {version}, and this program reads "
                f"{FORMAT_VERSION}: a newer one wrote it, and it is sound; use that one, or another registry",
                code="newer_format",
            )
        if version != FORMAT_VERSION:
            raise InvalidArtifact(f"its format version is {version}; this program reads {FORMAT_VERSION}")
        generation = fields.integer("generation", low=0)
        domains = {}
        for name, value in fields.mapping("domains").items():
            check_domain_name(name)
            domains[name] = _history(Fields(value, f"domain {name!r}"), _stack_version)
        router = fields.nullable(fields.mapping, "router")
        retired = Fields(retired_values := fields.mapping("retired"), "'retired'")
        manifest = cls(
            generation,
            domains,
            None if router is None else _history(Fields(router, "the router"), _version),
            {name: retired.integer(name, low=1) for name in retired_values},
        )
        fields.end()
        return manifest


@dataclass(frozen=True)
class Entry(Generic[V]):
    """A history in a manifest: a domain's, or the router's."""

    name: str
    get: Callable[[Manifest], History[V] | None]
    put: Callable[[Manifest, History[V]], Manifest]


def domain_entry(name: str) -> Entry[StackVersion]:
    return Entry(name, lambda m: m.domains.get(name), lambda m, history: m.with_domain(name, history))


ROUTER_ENTRY = Entry[Version](
    "router", lambda m: m.router, lambda m, history: dataclasses.replace(m, router=history)
)


def _history(fields: Fields, read: Callable[[Fields], V]) -> History[V]:
    entries = [Fields(value, "a version") for value in fields.items("versions")]
    versions = tuple(read(entry) for entry in entries)
    for entry in entries:
        entry.end()
    numbers = [version.version for version in versions]
    last = fields.integer("last_version", low=1)
    active = fields.integer("active", low=1)
    fields.end()
    if active not in numbers or numbers != sorted(set(numbers)) or numbers[-1] > last:
        raise InvalidArtifact(f"versions {numbers} with active {active} and last_version {last} do not agree")
    return History(active, last, versions)


def _version(fields: Fields) -> Version:
    digest = fields.text("digest")
    check_digest(digest)
    return Version(
        fields.integer("version", low=1),
        digest,
        fields.integer("bytes", low=1),
        fields.integer("created", low=0),
    )


def _stack_version(fields: Fields) -> StackVersion:
    version = _version(fields)
    return StackVersion(
        version.version,
        version.digest,
        version.bytes,
        version.created,
        rounds=fields.integer("rounds", 1, MAX_INTEGER),
        rank=fields.integer("rank", 1, MAX_INTEGER),
        experts=fields.integer("experts", 1, MAX_INTEGER),
    )
