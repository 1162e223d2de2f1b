"""Replies of `/admin`: stacks, routers and the registry that they are in."""

from __future__ import annotations

from typing import Any

from pydantic import MISSING, Field

from brainstacks.engine.request import Decider
from brainstacks.stacks.cache_stats import Tier
from server.replies.reply import Reply


class Version(Reply):
    version: int
    digest: str
    bytes: int
    created: int = Field(description="Unix seconds")


class StackVersion(Version):
    rounds: int
    rank: int
    experts: int


class Stack(Reply):
    """One domain. `version` is the one that is served, of `versions`, oldest first."""

    domain: str
    version: int
    digest: str
    versions: list[StackVersion]
    rounds: int
    rank: int
    experts: int
    bytes: int
    residency: Tier
    pinned: bool
    routable: bool
    routed_by: Decider | None = Field(description="null where routed requests leave it out")
    in_flight: int
    provenance: dict[str, Any]
    ready: bool = Field(description="every replica serves this version")


class Replica(Reply):
    replica: str
    generation: int
    residency: dict[str, Tier] = Field(description="by domain, of the version that it serves")


class Stacks(Reply):
    """What the replica that answers serves, and of all replicas where that is."""

    stacks: list[Stack]
    generation: int
    replicas: list[Replica]


class Changed(Reply):
    """What all changes of the registry tell."""

    digest: str
    generation: int
    created: bool
    ready: bool = Field(description="every replica serves it")
    serving: list[str] = Field(description="replicas that do")


class PublishedStack(Changed):
    """What serves after a change. `created` is false where the same bytes were there already.

    `routable` says whether routed requests use it, `routed_by` who decides when, and `note` what to do where
    they do not.
    """

    domain: str
    version: int
    routable: bool | MISSING = MISSING
    routed_by: Decider | MISSING | None = MISSING
    note: str | MISSING = MISSING
    purged: bool | MISSING = MISSING


class PublishedRouter(Changed):
    name: str
    version: int


class Router(Reply):
    version: int
    digest: str
    domains: list[str]
    config: dict[str, Any]
    provenance: dict[str, Any]


class Generation(Reply):
    generation: int


class StackHistory(Reply):
    active: int
    last_version: int
    versions: list[StackVersion]


class RouterHistory(Reply):
    active: int
    last_version: int
    versions: list[Version]


class Registry(Reply):
    """The manifest. `retired` has the last version number of each domain that was deleted."""

    format_version: int
    generation: int
    domains: dict[str, StackHistory]
    router: RouterHistory | None
    retired: dict[str, int]
