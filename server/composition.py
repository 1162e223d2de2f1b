"""From `model` and `routing` to a composition, and from a routing record to what a client sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainstacks.engine.interface import Engine
from brainstacks.engine.request import CompositionRequest, Routing
from brainstacks.errors import InvalidRequest, ModelNotFound
from server.schemas import RoutingField


def models(engine: Engine) -> dict[str, tuple[CompositionRequest, list[str]]]:
    """Every servable name -> (its composition, the domains that it can use).

    `<base>` is routed, `<base>:base` has no stacks, `<base>:ungated` all, `<base>:<domain>` that one.
    """
    base = engine.status.model.name
    domains = engine.stacks.names()
    names: dict[str, tuple[CompositionRequest, list[str]]] = {
        base: (CompositionRequest(), domains),
        f"{base}:base": (CompositionRequest(mode="base"), []),
        f"{base}:ungated": (CompositionRequest(mode="ungated"), domains),
    }
    for domain in domains:
        names[f"{base}:{domain}"] = (CompositionRequest(mode="fixed", weights={domain: 1.0}), [domain])
    return names


def resolve(engine: Engine, model: str | None, field: RoutingField | None) -> CompositionRequest:
    """The composition that a request asks for; `model` None means the base's name.

    Raises:
        ModelNotFound: no servable name is `model`.
        InvalidRequest: `routing` names an unknown domain, or `model` has already chosen.
    """
    base = engine.status.model.name
    names = models(engine)
    chosen = base if model is None else model
    if chosen not in names:
        raise ModelNotFound(
            f"The model {chosen[:200]!r} does not exist; there are {', '.join(names)}", param="model"
        )
    if field is None:
        return names[chosen][0]
    if chosen != base:
        raise InvalidRequest(
            f"The model {chosen!r} already names a composition; use {base!r} with the field 'routing'",
            param="routing",
        )
    known = names[base][1]
    for domain in field.weights or {}:
        if domain not in known:
            raise InvalidRequest(
                f"There is no domain {domain[:64]!r}; there are {', '.join(known) or 'none yet'}",
                param="routing.weights",
                code="unknown_domain",
            )
    return CompositionRequest(
        mode=field.mode,
        weights=dict(field.weights or {}),
        top=field.top,
        sticky=field.sticky,
        stacks=dict(field.stacks or {}),
    )


def routing_object(routing: Routing) -> dict[str, Any]:
    """The `routing` object of a response."""
    return {
        "request_id": routing.request_id,
        "mode": routing.mode,
        "probabilities": None if routing.probabilities is None else dict(routing.probabilities),
        "weights": dict(routing.weights),
        "routed_by": dict(routing.routed_by),
        "gap": routing.gap,
        "active": list(routing.active),
        "stacks": {
            domain: {"version": ref.version, "digest": ref.digest} for domain, ref in routing.stacks.items()
        },
        "router_ms": routing.router_ms,
        "generation": routing.generation,
        "created": routing.created,
    }


def routing_headers(routing: Routing) -> Mapping[str, str]:
    return {"x-brainstacks-routing": compact(routing)}


def compact(routing: Routing) -> str:
    """`routed;chat=0.850;math=0.900`: the mode, then each active domain's weight."""
    return ";".join((routing.mode, *(f"{domain}={routing.weights[domain]:.3f}" for domain in routing.active)))
