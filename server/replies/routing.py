"""How a request was composed."""

from __future__ import annotations

from pydantic import Field

from brainstacks.engine.request import Decider, Mode
from server.replies.reply import Reply


class StackReference(Reply):
    version: int
    digest: str


class Routing(Reply):
    """`weights` is what the policy gives, `active` what is applied."""

    request_id: str
    mode: Mode
    probabilities: dict[str, float] | None = Field(description="null where the router was not asked")
    weights: dict[str, float]
    routed_by: dict[str, Decider] = Field(
        description="who gave each weight; of a domain that is left out, nobody: it is not in here"
    )
    gap: float | None = Field(
        description="probability that no stack helps; in a sticky conversation of its first prompt; null "
        "where one that is routed to has no signature, or no prompt was read"
    )
    active: list[str]
    stacks: dict[str, StackReference] = Field(description="of the active domains")
    router_ms: float
    generation: int
    created: float = Field(description="Unix seconds")


class Route(Routing):
    """Reply of `POST /v1/route`."""

    prompt_tokens: int


class RoutingRecord(Routing):
    tenant: str


class RoutingRecords(Reply):
    """Reply of `GET /admin/requests`, newest first."""

    requests: list[RoutingRecord]
