"""What a request asks for -> the weights and stack versions that it runs with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from brainstacks.engine.request import CompositionRequest, Routing, StackRef
from brainstacks.errors import InvalidRequest
from brainstacks.layers.bank import Key
from brainstacks.routing.policy import GATE_THRESHOLD, active_domains, floored
from brainstacks.routing.router import Router
from brainstacks.stacks.residency import Residency, Resident


@dataclass(frozen=True)
class Composition:
    """A resolved composition; its residents are pinned until they are released.

    Attributes:
        weights: per stack version, for the bank; active domains only.
    """

    routing: Routing
    residents: tuple[Resident, ...]
    weights: Mapping[Key, float]


class Composer:
    """Router + policy + residency -> compositions.

    Args:
        residency: what is served.
        router: the router in force, None where there is none; replaced when another is published.
    """

    def __init__(self, residency: Residency, router: Router | None) -> None:
        self._residency = residency
        self.router = router

    def needs_router(self, composition: CompositionRequest) -> bool:
        return composition.mode == "routed" and self.router is not None

    def check(self, composition: CompositionRequest) -> None:
        """Refuse what cannot be composed. Raises InvalidRequest: a fixed weight names no served domain."""
        unknown = sorted(set(composition.weights) - set(self._residency.serving))
        if unknown:
            served = ", ".join(self._residency.serving) or "none"
            raise InvalidRequest(
                f"routing.weights names {', '.join(map(repr, unknown))}; the domains served are: {served}",
                param="routing.weights",
            )

    def routable(self, domain: str) -> bool:
        """The router was trained with the very stack that is served for `domain`."""
        resident = self._residency.serving.get(domain)
        stacks = self.router.metadata.stacks if self.router is not None else {}
        return resident is not None and stacks.get(domain) == resident.digest

    def compose(
        self,
        request_id: str,
        composition: CompositionRequest,
        generation: int,
        probabilities: Mapping[str, float] | None = None,
        router_ms: float = 0.0,
    ) -> Composition:
        """Resolve and pin.

        Args:
            probabilities: the router's, for a routed request; None when it did not run.

        Raises:
            InvalidRequest: as `check`.
        """
        self.check(composition)
        weights = self._weights(composition, probabilities)
        active = active_domains(weights, self.gate_threshold, composition.top)
        residents = self._residency.acquire(active)
        routing = Routing(
            request_id=request_id,
            mode=composition.mode,
            probabilities=probabilities,
            weights=weights,
            active=active,
            stacks={d: StackRef(r.version, r.digest) for d, r in residents.items()},
            router_ms=router_ms,
            created=time.time(),
            generation=generation,
        )
        return Composition(
            routing,
            tuple(residents.values()),
            {resident.key: weights[domain] for domain, resident in residents.items()},
        )

    @property
    def gate_threshold(self) -> float:
        return self.router.config.gate_threshold if self.router is not None else GATE_THRESHOLD

    def _weights(
        self, composition: CompositionRequest, probabilities: Mapping[str, float] | None
    ) -> dict[str, float]:
        """Weight per served domain, in the registry's order."""
        served = tuple(self._residency.serving)
        if composition.mode == "ungated":
            return dict.fromkeys(served, 1.0)
        if composition.mode == "fixed":
            return {domain: composition.weights.get(domain, 0.0) for domain in served}
        if composition.mode == "routed" and self.router is not None and probabilities is not None:
            chosen = floored(probabilities, self.router.config.floors)
            # A stack that is newer than the router means something else than what the router learnt.
            return {d: (chosen.get(d, 0.0) if self.routable(d) else 0.0) for d in served}
        return dict.fromkeys(served, 0.0)
