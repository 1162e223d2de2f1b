"""What a request asks for -> the weights and stack versions that it runs with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from brainstacks.engine.request import CompositionRequest, Decider, Request, Routing, StackRef
from brainstacks.engine.serving.serving import Serving
from brainstacks.errors import BrainstacksError, Conflict, InvalidRequest
from brainstacks.routing.policy import active_domains, floored
from brainstacks.routing.reader import Reader, Reading
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
    """Reader + policy + what is served -> compositions."""

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
        reading: Reading | None = None,
        router_ms: float = 0.0,
        *,
        reader: Reader | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> Composition:
        """Resolve, pin, and start to load what is not on the device.

        Args:
            reading: of a routed request's prompt; None where it was not read.
            reader: whose it is: its floors and gate go with it, even when another has come since. None: the
                one in force.
            on_change: see `StackCache.acquire`.

        Raises:
            InvalidRequest: as `check`; or the stacks do not fit on the device together.
            DomainNotFound, Conflict: a domain was deleted or replaced in this very moment.
        """
        reader = reader or self._serving.reader
        weights, active, deciders = self._chosen(request.composition, reading, reader)
        lease = self._cache.acquire(active, on_change)
        try:
            self._check_versions(request.composition, lease.stacks)  # another may have come since
        except BrainstacksError:
            self._cache.release(lease)
            raise
        routing = _routing(request, generation, reading, router_ms, weights, lease.stacks, deciders)
        bound = {stack.key: weights[domain] for domain, stack in lease.stacks.items()}
        return Composition(routing, lease, bound, on_prompt(bound, lease.stacks.values()))

    def route(
        self,
        request: Request,
        generation: int,
        reading: Reading | None = None,
        router_ms: float = 0.0,
        *,
        reader: Reader | None = None,
    ) -> Routing:
        """What `compose` would run with; pins and loads nothing. Arguments and errors as there."""
        chosen = self._chosen(request.composition, reading, reader or self._serving.reader)
        weights, active, deciders = chosen
        serving = self._cache.serving
        stacks = {domain: serving[domain] for domain in active if domain in serving}
        return _routing(request, generation, reading, router_ms, weights, stacks, deciders)

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
        self, composition: CompositionRequest, reading: Reading | None, reader: Reader
    ) -> tuple[dict[str, float], tuple[str, ...], dict[str, Decider]]:
        """Weights of all served domains, which of these are applied, and who gave each."""
        self.check(composition)
        deciders = self._deciders(composition, reading, reader)
        weights = self._weights(composition, reading, reader, deciders)
        return weights, active_domains(weights, reader.gate_threshold, composition.top), deciders

    @property
    def gate_threshold(self) -> float:
        return self._serving.reader.gate_threshold

    def _deciders(
        self, composition: CompositionRequest, reading: Reading | None, reader: Reader
    ) -> dict[str, Decider]:
        """Who decides on each served domain. A stack that the reader does not know is left out: it means
        something else than what was learnt."""
        serving = self._cache.serving
        if composition.mode != "routed":
            return dict.fromkeys(serving, "request")
        known = {domain: reader.decides(domain, stack.digest) for domain, stack in serving.items()}
        return {d: decider for d, decider in known.items() if decider is not None and reading is not None}

    def _weights(
        self,
        composition: CompositionRequest,
        reading: Reading | None,
        reader: Reader,
        deciders: Mapping[str, Decider],
    ) -> dict[str, float]:
        """Weight per served domain, in the registry's order."""
        served = tuple(self._cache.serving)
        if composition.mode == "ungated":
            return dict.fromkeys(served, 1.0)
        if composition.mode == "fixed":
            return {domain: composition.weights.get(domain, 0.0) for domain in served}
        if composition.mode == "routed" and reading is not None:
            chosen = floored(reading.probabilities, reader.floors)
            return {domain: chosen[domain] if domain in deciders else 0.0 for domain in served}
        return dict.fromkeys(served, 0.0)


def on_prompt(weights: Mapping[StackKey, float], stacks: Iterable[ServedStack]) -> Mapping[StackKey, float]:
    """Of the `weights` of `stacks`, those that act on a prompt too; the same mapping where all do."""
    late = {stack.key for stack in stacks if stack.metadata.config.applies == "response"}
    return {key: weight for key, weight in weights.items() if key not in late} if late else weights


def _routing(
    request: Request,
    generation: int,
    reading: Reading | None,
    router_ms: float,
    weights: Mapping[str, float],
    active: Mapping[str, ServedStack],
    deciders: Mapping[str, Decider],
) -> Routing:
    return Routing(
        request_id=request.request_id,
        mode=request.composition.mode,
        probabilities=reading.probabilities if reading is not None else None,
        weights=weights,
        active=tuple(active),
        stacks={domain: StackRef(r.version, r.digest) for domain, r in active.items()},
        router_ms=router_ms,
        routed_by=deciders,
        gap=reading.gap if reading is not None else None,
        created=time.time(),
        generation=generation,
        tenant=request.tenant,
    )
