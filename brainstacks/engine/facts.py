"""What the engine tells of itself: of its base, its stacks and router, its load, and whether it is well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brainstacks.engine.request import Decider
from brainstacks.stacks.cache_stats import Tier


@dataclass(frozen=True)
class ModelInfo:
    """What is served.

    Attributes:
        name: the base's short name, the `<base>` of model names.
        max_context: most tokens of prompt + completion.
        vocab_size: token ids lie in 0..vocab_size-1.
        fingerprint: the base fingerprint.
        quantization, dtype, device: as loaded, for people; several devices with commas between them.
        backend, backend_reason: what computes its steps, and why that; cpu: the processor and its features;
            gpu: what `device` is, None for a CPU; for people.
        device_stack_bytes: most bytes of stacks on the device; None for no limit.
        kv_cache_tokens: tokens whose keys and values there is room for.
    """

    name: str
    max_context: int
    vocab_size: int
    fingerprint: str
    quantization: str
    dtype: str
    device: str
    created: int
    backend: str
    backend_reason: str
    cpu: str
    gpu: str | None
    device_stack_bytes: int | None
    kv_cache_tokens: int


@dataclass(frozen=True)
class DomainStatus:
    """One domain as the admin endpoints show it.

    Attributes:
        version, digest: of the version that is served. It is the active one, unless that one is corrupt or
            does not fit, and the last good one goes on.
        versions: all published versions, oldest first: `{"version", "digest", "bytes", "created"}`.
        routable: routed requests use this very version.
        routed_by: who decides when: the router in force, which was trained with it, or the signature in its
            file; None where nobody does.
        residency: where the served version is.
        pinned: it never leaves the device.
        in_flight: running requests that use any version of it.
        provenance: the file's own metadata: base, data, hyper-parameters, losses, licence, ...
    """

    domain: str
    version: int
    digest: str
    versions: tuple[Mapping[str, Any], ...]
    rounds: int
    rank: int
    experts: int
    bytes: int
    residency: Tier
    pinned: bool
    routable: bool
    routed_by: Decider | None
    in_flight: int
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RouterStatus:
    """The router in force: its digest, domains, policy and how its stacks compare with the active ones."""

    version: int
    digest: str
    domains: tuple[str, ...]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gauges:
    """Gauges for `/metrics` and `/health`; and, since the start, counts.

    Attributes:
        prompt_tokens: of requests that were admitted.
        prompt_tokens_reused: those of them whose keys and values the prefix cache had.
        preemptions: how often a running completion gave up its memory, to be computed again.
    """

    running: int
    waiting: int
    kv_tokens_used: int
    kv_tokens_total: int
    prompt_tokens: int = 0
    prompt_tokens_reused: int = 0
    preemptions: int = 0


@dataclass(frozen=True)
class Readiness:
    """Answer of `/ready`.

    Attributes:
        ready: base, registry and router are usable and the engine is not draining.
        problems: why not; or, when ready, what is degraded (a corrupt version that is not served, say).
        unrouted: domains that are served, and that routed requests leave out.
    """

    ready: bool
    problems: tuple[str, ...] = ()
    unrouted: tuple[str, ...] = ()
