"""Frozen configurations. Unknown keys are refused by name; nothing here has a side effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from brainstacks.errors import ConfigError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven projections of a decoder layer, by role (paper, section 3.1), in forward order."""

RESERVED_DOMAINS = frozenset({"base", "ungated", "routed", "fixed"})
"""Names with a meaning of their own in `<base>:<name>` or `routing.mode`; no domain may take one."""

Quantization = Literal["nf4", "int8", "none", "native"]
"""Of the base's linears; `native` is a GGUF file's own."""

Backend = Literal["auto", "torch", "cpu", "cuda"]

Applies = Literal["everywhere", "response"]
"""Where a stack's deltas act: on every token; or from the last token of the prompt on, which is the first
that predicts a token of the response. The prompt's keys and values are then the base's."""

DEVICE_NAMES = r"auto|cpu|cuda(:\d+)?"
"""A pattern of what a device is called."""

DEVICE_MAPS = r"auto|cpu(,cpu)+|cuda:\d+(,cuda:\d+)+"
"""A pattern of the devices that a base's layers may be spread over."""

MAX_ALPHA = 2.0**14
"""Far beyond what anybody trains with. With it, and with weights of at most
`safetensors_file.MAX_MAGNITUDE`, the products of one delta stay far within float32."""

Features = tuple[int, float, float]
"""Tokens of a prompt that are read, and the weights of their middle and their last hidden state."""

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the frozen dataclass `cls` from `values`.

    Raises:
        ConfigError: `values` has a key that `cls` has not, or lacks one without a default.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields), key=str)
    if unknown:
        raise ConfigError(
            f"{cls.__name__} has no field {', '.join(map(repr, unknown))}; it has {', '.join(fields)}"
        )
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{cls.__name__} needs {', '.join(map(repr, missing))}")
    return cls(**values)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class StackConfig:
    """Shape of every round of one domain stack.

    Attributes:
        rank: r, columns of each expert's low-rank factors.
        alpha: rsLoRA alpha, 1/16384..16384; the delta is scaled by `alpha / sqrt(rank)`.
        experts: N, experts per delta.
        top_k: K, experts that the gate keeps per token.
        projections: which of `PROJECTIONS` carry a delta, in that order.
        layers: number of decoder layers, all of which carry deltas.
        applies: where the deltas act.
    """

    rank: int = 16
    alpha: float = 16.0
    experts: int = 4
    top_k: int = 2
    projections: tuple[str, ...] = PROJECTIONS
    layers: int = 0
    applies: Applies = "everywhere"

    def __post_init__(self) -> None:
        object.__setattr__(self, "projections", tuple(self.projections))
        _require(
            self.applies in get_args(Applies),
            f"applies is {self.applies!r}; it is one of {', '.join(get_args(Applies))}",
        )
        for name in ("rank", "experts", "top_k", "layers"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) and not isinstance(value, bool),
                f"{name} is {value!r}; it is an integer",
            )
        _require(1 <= self.rank <= 1024, f"rank is {self.rank}; it lies in 1..1024")
        _require(1 <= self.experts <= 64, f"experts is {self.experts}; it lies in 1..64")
        _require(
            1 <= self.top_k <= self.experts, f"top_k is {self.top_k}; it lies in 1..experts ({self.experts})"
        )
        _require(
            isinstance(self.alpha, int | float)
            and not isinstance(self.alpha, bool)
            and 1 / MAX_ALPHA <= self.alpha <= MAX_ALPHA,
            f"alpha is {self.alpha!r}; it lies in 1/{MAX_ALPHA:.0f}..{MAX_ALPHA:.0f}",
        )
        _require(1 <= self.layers <= 1024, f"layers is {self.layers}; it lies in 1..1024")
        ordered = tuple(p for p in PROJECTIONS if p in self.projections)
        _require(
            len(ordered) > 0 and ordered == self.projections,
            f"projections is {list(self.projections)}; it is some of {list(PROJECTIONS)}, in that order",
        )

    @property
    def scaling(self) -> float:
        """s = alpha / sqrt(r) (rsLoRA; paper, eq. 2)."""
        return float(self.alpha / self.rank**0.5)


@dataclass(frozen=True)
class MetaRouterConfig:
    """Everything that a router needs to mean the same in training and in serving (method 6f).

    Attributes:
        domains: names, in the order of the router's outputs.
        token_dim: d, width of the base's hidden states.
        hidden_dim: width of the router's own token space.
        sequence_length: L, prompt tokens that the router reads (the first L).
        mid_weight, last_weight: mix of the middle and the last hidden state.
        floors: least weight per domain name after the policy (`{"chat": 0.20}` in the paper).
        gate_threshold: a domain whose weight is <= this is not applied.
        dropout: used in training only.
    """

    domains: tuple[str, ...]
    token_dim: int
    hidden_dim: int = 512
    sequence_length: int = 256
    mid_weight: float = 0.45
    last_weight: float = 0.55
    floors: Mapping[str, float] = field(default_factory=dict)
    gate_threshold: float = 0.12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        _require(len(self.domains) > 0, "domains is empty; a router needs at least one")
        _require(len(set(self.domains)) == len(self.domains), f"domains repeats a name: {list(self.domains)}")
        for name in ("token_dim", "hidden_dim", "sequence_length"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) and 1 <= value <= 1 << 20, f"{name} is {value!r}; it lies in 1..2^20"
            )
        for domain, floor in self.floors.items():
            _require(
                domain in self.domains, f"floors names {domain!r}; the router's domains are {self.domains}"
            )
            _require(0.0 <= floor <= 1.0, f"the floor of {domain!r} is {floor}; it lies in 0..1")
        _require(
            0.0 <= self.gate_threshold < 1.0, f"gate_threshold is {self.gate_threshold}; it lies in 0..1"
        )

    @property
    def features(self) -> Features:
        return (self.sequence_length, float(self.mid_weight), float(self.last_weight))


@dataclass(frozen=True)
class SignatureConfig:
    """What the routing signature of a stack was made of, and how large it is.

    Attributes:
        width: d, width of the base's hidden states.
        directions: K, directions in which the domain's prompts were found to spread, 1..64.
        prompts: of the domain, that it was made of (count).
        quantization: of the base that it was made on.
        sequence_length, mid_weight, last_weight: the features, as `MetaRouterConfig` has them.
    """

    width: int
    directions: int
    prompts: int
    quantization: Quantization
    sequence_length: int = 256
    mid_weight: float = 0.45
    last_weight: float = 0.55

    def __post_init__(self) -> None:
        _require(
            self.quantization in get_args(Quantization),
            f"quantization is {self.quantization!r}; it is one of {', '.join(get_args(Quantization))}",
        )
        for name, low, high in (
            ("width", 1, 1 << 20),
            ("directions", 1, 64),
            ("prompts", 1, 1 << 40),
            ("sequence_length", 1, 1 << 20),
        ):
            value = getattr(self, name)
            _require(
                type(value) is int and low <= value <= high,
                f"{name} is {value!r}; it is an integer in {low}..{high}",
            )
        for name in ("mid_weight", "last_weight"):
            value = getattr(self, name)
            _require(type(value) in (int, float) and 0 <= value <= 1, f"{name} is {value!r}; it lies in 0..1")

    @property
    def features(self) -> Features:
        """What it can be compared with: the features of the same tokens and layers."""
        return (self.sequence_length, float(self.mid_weight), float(self.last_weight))


@dataclass(frozen=True)
class EngineConfig:
    """Limits of the engine.

    Attributes:
        max_batch_size: most sequences that one step advances.
        max_queue: most requests that wait; a further one is refused with `Overloaded`.
        max_context: most tokens of prompt + completion; None takes the base's own.
        max_prefill_tokens: most prompt tokens that one step computes.
        max_router_batch: most waiting prompts that one router pass reads.
        kv_cache_tokens: KV memory in tokens, over all sequences and the prefixes kept for reuse; None takes
            131,072, or as many as half of the memory holds that is free when everything is loaded; on a GPU
            see `engine.budgets`.
        prefix_caching: keep the keys and values of finished prompts for requests of the same composition.
        backend: what computes steps: `torch`, `cpu` (compiled), `cuda` (Triton), or `auto`, the fastest that
            knows the base.
        cuda_graphs: of the `cuda` backend, decode by CUDA graphs; else operation by operation.
        exact: compute with the very values of quantised weights; else, on a CPU, with int8 activations.
        deterministic: exact, and no request's tokens depend on its neighbours; costs speed.
        device_stack_bytes: most bytes of stacks on the device; None keeps every served stack in a CPU's
            memory, and takes a share of a GPU's.
        host_stack_bytes: most bytes of packed stacks in host memory, of those that had to leave the device;
            beside a GPU of all, page-locked.
        max_unread_events: a stream whose client has left this many events unread pauses until they are read.
        routing_records: how many recent routing records are kept.
    """

    max_batch_size: int = 16
    max_queue: int = 256
    max_context: int | None = None
    max_prefill_tokens: int = 1024
    max_router_batch: int = 8
    kv_cache_tokens: int | None = None
    prefix_caching: bool = True
    backend: Backend = "auto"
    cuda_graphs: bool = True
    exact: bool = False
    deterministic: bool = False
    device_stack_bytes: int | None = None
    host_stack_bytes: int = 4 << 30
    max_unread_events: int = 256
    routing_records: int = 1024

    def __post_init__(self) -> None:
        for name in (
            "max_batch_size",
            "max_queue",
            "max_prefill_tokens",
            "max_router_batch",
            "max_unread_events",
            "routing_records",
        ):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it is at least 1")
        _require(
            self.backend in get_args(Backend),
            f"backend is {self.backend!r}; it is one of {', '.join(get_args(Backend))}",
        )
        for name in ("max_context", "kv_cache_tokens"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} is {value}; it is at least 1")
        _require(
            self.device_stack_bytes is None or self.device_stack_bytes >= 0,
            f"device_stack_bytes is {self.device_stack_bytes}; it is at least 0",
        )
        _require(self.host_stack_bytes >= 0, f"host_stack_bytes is {self.host_stack_bytes}; it is at least 0")
