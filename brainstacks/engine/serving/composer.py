"""What a request asks for -> the weights and stack versions that it runs with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from brainstacks.engine.request import CompositionRequest, Request, Routing, StackRef
from brainstacks.engine.serving.serving import Serving
from brainstacks.errors import BrainstacksError, Conflict, InvalidRequest
from brainstacks.routing.policy import GATE_THRESHOLD, active_domains, floored
from brainstacks.routing.router import Router
from brainstacks.stacks.lease import Lease, ServedStack, StackKey


@dataclass(frozen=True)
class Composition:
    """A resolved composition.

    Attributes:
        lease: its stack versions, kept until it is released; the composition can run once it is ready.
        weights: per stack version, for the bank; active domains only.
        prompt_weights: those of them that act on the prompt too; the same mapping where all do.
    """

    routing: Routing
    lease: Lease
    weights: Mapping[StackKey, float]
    prompt_weights: Mapping[StackKey, float]


class Composer:
    """Router + policy + what is served -> compositions."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._cache = serving.cache

    def check(self, composition: CompositionRequest) -> None:
        """Refuse what cannot be composed.

        Raises:
            InvalidRequest: a fixed weight is not finite, or names no served domain.
            DomainNotFound, VersionNotFound, Conflict: a stack that it names is not there, or is not served.
        """
        for domain, weight in composition.weights.items():
            if not math.isfinite(weight):
                raise InvalidRequest(
                    f"the weight of {domain!r} is {weight}; weights are finite", param="routing.weights"
                )
        unknown = sorted(set(composition.weights) - set(self._cache.serving))
        if unknown:
            served = ", ".join(self._cache.serving) or "none"
            raise InvalidRequest(
                f"routing.weights names {', '.join(map(repr, unknown))}; the domains served are: {served}",
                param="routing.weights",
                code="unknown_domain",
            )
        self._check_versions(composition, {name: self._cache.served(name) for name in composition.stacks})

    def compose(
        self,
        request: Request,
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
            on_change: see `StackCache.acquire`.

        Raises:
            InvalidRequest: as `check`; or the stacks do not fit on the device together.
            DomainNotFound, Conflict: a domain was deleted or replaced in this very moment.
        """
        router = router or self._serving.router
        weights, active = self._chosen(request.composition, probabilities, router)
        lease = self._cache.acquire(active, on_change)
        try:
            self._check_versions(request.composition, lease.stacks)  # another may have come since
        except BrainstacksError:
            self._cache.release(lease)
            raise
        routing = _routing(request, generation, probabilities, router_ms, weights, lease.stacks)
        bound = {stack.key: weights[domain] for domain, stack in lease.stacks.items()}
        return Composition(routing, lease, bound, on_prompt(bound, lease.stacks.values()))

    def route(
        self,
        request: Request,
        generation: int,
        probabilities: Mapping[str, float] | None = None,
        router_ms: float = 0.0,
        *,
        router: Router | None = None,
    ) -> Routing:
        """What `compose` would run with; pins and loads nothing. Arguments and errors as there."""
        weights, active = self._chosen(request.composition, probabilities, router or self._serving.router)
        serving = self._cache.serving
        stacks = {domain: serving[domain] for domain in active if domain in serving}
        return _routing(request, generation, probabilities, router_ms, weights, stacks)

    def _check_versions(self, composition: CompositionRequest, stacks: Mapping[str, ServedStack]) -> None:
        """That `stacks` are the versions that the composition names."""
        for domain, stack in stacks.items():
            wanted = composition.stacks.get(domain)
            if wanted not in (None, stack.version, stack.digest):
                self._serving.require_version(domain, wanted)
                raise Conflict(
                    f"version {stack.version} of {domain} is served, and routing.stacks asks for {wanted}; "
                    "activate that one, or leave routing.stacks out",
                    param="routing.stacks",
                )

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
        return _gate_threshold(self._serving.router)

    def _weights(
        self,
        composition: CompositionRequest,
        probabilities: Mapping[str, float] | None,
        router: Router | None,
    ) -> dict[str, float]:
        """Weight per served domain, in the registry's order."""
        served = tuple(self._cache.serving)
        if composition.mode == "ungated":
            return dict.fromkeys(served, 1.0)
        if composition.mode == "fixed":
            return {domain: composition.weights.get(domain, 0.0) for domain in served}
        if composition.mode == "routed" and router is not None and probabilities is not None:
            chosen = floored(probabilities, router.config.floors)
            # A stack that is newer than the router means something else than what the router learnt.
            return {d: (chosen.get(d, 0.0) if self._serving.routable(d, router) else 0.0) for d in served}
        return dict.fromkeys(served, 0.0)


def on_prompt(weights: Mapping[StackKey, float], stacks: Iterable[ServedStack]) -> Mapping[StackKey, float]:
    """Of the `weights` of `stacks`, those that act on a prompt too; the same mapping where all do."""
    late = {stack.key for stack in stacks if stack.metadata.config.applies == "response"}
    return {key: weight for key, weight in weights.items() if key not in late} if late else weights


def _routing(
    request: Request,
    generation: int,
    probabilities: Mapping[str, float] | None,
    router_ms: float,
    weights: Mapping[str, float],
    active: Mapping[str, ServedStack],
) -> Routing:
    return Routing(
        request_id=request.request_id,
        mode=request.composition.mode,
        probabilities=probabilities,
        weights=weights,
        active=tuple(active),
        stacks={domain: StackRef(r.version, r.digest) for domain, r in active.items()},
        router_ms=router_ms,
        created=time.time(),
        generation=generation,
        tenant=request.tenant,
    )


def _gate_threshold(router: Router | None) -> float:
    return router.config.gate_threshold if router is not None else GATE_THRESHOLD
