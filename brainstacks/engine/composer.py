"""What a request asks for -> the weights and stack versions that it runs with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from brainstacks.engine.request import CompositionRequest, Routing, StackRef
from brainstacks.errors import InvalidRequest
from brainstacks.routing.policy import GATE_THRESHOLD, active_domains, floored
from brainstacks.routing.router import Router
from brainstacks.stacks.residency import Lease, Residency, Resident, StackKey


@dataclass(frozen=True)
class Composition:
    """A resolved composition.

    Attributes:
        lease: its stack versions, kept until it is released; the composition can run once it is ready.
        weights: per stack version, for the bank; active domains only.
    """

    routing: Routing
    lease: Lease
    weights: Mapping[StackKey, float]


class Composer:
    """Router + policy + residency -> compositions.

    Args:
        residency: what is served.
        router: the router in force, None where there is none; replaced when another is published.
    """

    def __init__(self, residency: Residency, router: Router | None) -> None:
        self._residency = residency
        self.router = router

    def check(self, composition: CompositionRequest) -> None:
        """Refuse what cannot be composed. Raises InvalidRequest: a fixed weight names no served domain."""
        unknown = sorted(set(composition.weights) - set(self._residency.serving))
        if unknown:
            served = ", ".join(self._residency.serving) or "none"
            raise InvalidRequest(
                f"routing.weights names {', '.join(map(repr, unknown))}; the domains served are: {served}",
                param="routing.weights",
                code="unknown_domain",
            )

    def routable(self, domain: str) -> bool:
        """The router was trained with the very stack that is served for `domain`."""
        return self._routable(domain, self.router)

    def compose(
        self,
        request_id: str,
        composition: CompositionRequest,
        generation: int,
        probabilities: Mapping[str, float] | None = None,
        router_ms: float = 0.0,
        *,
        router: Router | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> Composition:
        """Resolve, pin, and start to load what is not on the device.

        Args:
            probabilities: the router's, for a routed request; None when it did not run.
            router: the one that gave them: its floors and gate go with them, even when another has been
                published since. None: the one in force.
            on_change: see `Residency.acquire`.

        Raises:
            InvalidRequest: as `check`; or the stacks do not fit on the device together.
            DomainNotFound: a domain was deleted in this very moment.
        """
        router = router or self.router
        weights, active = self._chosen(composition, probabilities, router)
        lease = self._residency.acquire(active, on_change)
        routing = _routing(
            request_id, composition, generation, probabilities, router_ms, weights, lease.residents
        )
        return Composition(routing, lease, {r.key: weights[d] for d, r in lease.residents.items()})

    def route(
        self,
        request_id: str,
        composition: CompositionRequest,
        generation: int,
        probabilities: Mapping[str, float] | None = None,
        router_ms: float = 0.0,
        *,
        router: Router | None = None,
    ) -> Routing:
        """What `compose` would run with; pins and loads nothing. Arguments and errors as there."""
        weights, active = self._chosen(composition, probabilities, router or self.router)
        serving = self._residency.serving
        residents = {domain: serving[domain] for domain in active if domain in serving}
        return _routing(request_id, composition, generation, probabilities, router_ms, weights, residents)

    def _chosen(
        self,
        composition: CompositionRequest,
        probabilities: Mapping[str, float] | None,
        router: Router | None,
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """Weights of all served domains, and which of these are applied."""
        self.check(composition)
        weights = self._weights(composition, probabilities, router)
        return weights, active_domains(weights, _gate_threshold(router), composition.top)

    @property
    def gate_threshold(self) -> float:
        return _gate_threshold(self.router)

    def _routable(self, domain: str, router: Router | None) -> bool:
        resident = self._residency.serving.get(domain)
        stacks = router.metadata.stacks if router is not None else {}
        return resident is not None and stacks.get(domain) == resident.digest

    def _weights(
        self,
        composition: CompositionRequest,
        probabilities: Mapping[str, float] | None,
        router: Router | None,
    ) -> dict[str, float]:
        """Weight per served domain, in the registry's order."""
        served = tuple(self._residency.serving)
        if composition.mode == "ungated":
            return dict.fromkeys(served, 1.0)
        if composition.mode == "fixed":
            return {domain: composition.weights.get(domain, 0.0) for domain in served}
        if composition.mode == "routed" and router is not None and probabilities is not None:
            chosen = floored(probabilities, router.config.floors)
            # A stack that is newer than the router means something else than what the router learnt.
            return {d: (chosen.get(d, 0.0) if self._routable(d, router) else 0.0) for d in served}
        return dict.fromkeys(served, 0.0)


def _routing(
    request_id: str,
    composition: CompositionRequest,
    generation: int,
    probabilities: Mapping[str, float] | None,
    router_ms: float,
    weights: Mapping[str, float],
    active: Mapping[str, Resident],
) -> Routing:
    return Routing(
        request_id=request_id,
        mode=composition.mode,
        probabilities=probabilities,
        weights=weights,
        active=tuple(active),
        stacks={domain: StackRef(r.version, r.digest) for domain, r in active.items()},
        router_ms=router_ms,
        created=time.time(),
        generation=generation,
    )


def _gate_threshold(router: Router | None) -> float:
    return router.config.gate_threshold if router is not None else GATE_THRESHOLD
