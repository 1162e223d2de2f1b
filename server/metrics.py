"""What `/metrics` shows. One registry per app, so that two apps in one process never mix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from brainstacks.engine.interface import Engine
from brainstacks.engine.request import Routing, Timing
from brainstacks.stacks.cache_stats import LOAD_SECONDS, CacheStats, Tier

MOST_COMPOSITIONS = 64
"""Sets of active domains that are counted by name; all that come later are `other`."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each: of when it began

F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily)

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SLOW = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
_PROBABILITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_WEIGHTS = (-1.0, -0.5, 0.0, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)


class EngineCollector:
    """What is read from the engine at the moment of the scrape."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        load = self.engine.status.gauges()
        yield _gauge("running", "Requests that are being generated", load.running)
        yield _gauge("waiting", "Requests in the queue", load.waiting)
        yield _gauge("kv_tokens_used", "KV cache slots in use, in tokens", load.kv_tokens_used)
        yield _gauge("kv_tokens_total", "KV cache slots, in tokens", load.kv_tokens_total)
        admitted = "Prompt tokens of requests that were admitted"
        yield _count("admitted_prompt_tokens", admitted, load.prompt_tokens)
        reused = "Prompt tokens whose keys and values an earlier request had left"
        yield _count("reused_prompt_tokens", reused, load.prompt_tokens_reused)
        preempted = "Completions that gave up their memory for a while, to be computed again"
        yield _count("preemptions", preempted, load.preemptions)
        yield _gauge("registry_generation", "The registry's manifest number", self.engine.stacks.generation)
        yield from _residency(self.engine.status.cache())


def _residency(stats: CacheStats) -> Iterator[Metric]:
    where = GaugeMetricFamily(
        "brainstacks_stack_tier",
        "1 for the tier where the served stack of a domain is, 0 for the others",
        labels=["domain", "tier"],
    )
    for domain, tier in stats.tiers.items():
        for each in get_args(Tier):
            where.add_metric([domain, each], each == tier)
    yield where
    held = "Bytes of stacks per tier: packed on the device and in host memory, as files on disk"
    yield _by_tier(GaugeMetricFamily("brainstacks_stack_bytes", held, labels=["tier"]), stats.bytes)
    budget = "Most bytes of stacks that a tier may hold; a tier without a limit is left out"
    yield _by_tier(
        GaugeMetricFamily("brainstacks_stack_budget_bytes", budget, labels=["tier"]), stats.budgets
    )
    loads = "Stacks brought to the device, by the tier that they came from"
    yield _by_tier(CounterMetricFamily("brainstacks_stack_loads", loads, labels=["tier"]), stats.loads)
    left = "Stacks that had to make room, by the tier that they left"
    yield _by_tier(CounterMetricFamily("brainstacks_stack_evictions", left, labels=["tier"]), stats.evictions)
    yield _count("stack_hits", "Stacks that were on the device when their request came", stats.hits)
    yield _count("stack_misses", "Stacks that were not on the device when their request came", stats.misses)
    yield _gauge("stack_waiting", "Requests that wait for room on the device for their stacks", stats.waiting)
    bounds = [*map(str, LOAD_SECONDS), "+Inf"]
    yield HistogramMetricFamily(
        "brainstacks_stack_load_seconds",
        "Time to bring a stack to the device",
        buckets=list(zip(bounds, accumulate(stats.load_seconds), strict=True)),
        sum_value=stats.load_seconds_sum,
    )


def _by_tier(family: F, values: Mapping[Tier, float]) -> F:
    for tier, value in values.items():
        family.add_metric([tier], value)
    return family


class Metrics:
    """Counters and histograms that the HTTP layer feeds.

    Times are in seconds, except that the names say otherwise; labels take values that the server or its
    operator chose (domains, statuses, error codes, names of keys), never a client's own text.
    docs/metrics.md lists all.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.responses = self._counter("http_responses", "HTTP responses by key and status", "key", "status")
        self.errors = self._counter(
            "errors", "Errors by code, those in the middle of a stream included", "code"
        )
        self.uploads = self._counter("uploads", "Uploads of stacks and routers by outcome", "outcome")
        self.aborts = self._counter("aborts", "Requests whose client left before the end")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens in, by key", "key")
        self.completion_tokens = self._counter("completion_tokens", "Tokens out, by key", "key")
        self.activations = self._counter("domain_activations", "Requests that used a domain", "domain")
        self.compositions = self._counter(
            "compositions", "Requests by the set of their active domains", "composition"
        )
        self._named: set[str] = set()  # compositions that are counted by name
        self.active = self._histogram("active_domains", "Active domains of a request", _COUNTS)
        self.modes = self._counter("routed_requests", "Requests by mode of composition", "mode")
        self.weights = self._histogram("domain_weight", "Weights of active domains", _WEIGHTS, "domain")
        self.probability = self._histogram(
            "router_probability", "Probabilities that the router gave a domain", _PROBABILITIES, "domain"
        )
        self.confidence = self._histogram(
            "router_confidence", "The highest of the router's probabilities for a prompt", _PROBABILITIES
        )
        self.gap = self._histogram(
            "gap_probability", "Probabilities that no stack helps a prompt", _PROBABILITIES
        )
        self.router = self._histogram("router_seconds", "Time of the router pass", _FAST)
        self.queue = self._histogram("queue_seconds", "Arrival to the first step of a completion", _SLOW)
        self.prefill = self._histogram("prefill_seconds", "First step to first token", _SLOW)
        self.first_token = self._histogram("time_to_first_token_seconds", "Request to first token", _SLOW)
        self.inter_token = self._histogram("inter_token_seconds", "Between two tokens of a completion", _FAST)
        self.end_to_end = self._histogram("request_seconds", "Request to last token", _SLOW)

    def observe_routing(self, routing: Routing) -> None:
        self.modes.labels(routing.mode).inc()
        if routing.probabilities and routing.router_ms:  # else they are of the conversation's first prompt
            self.router.observe(routing.router_ms / 1000)
            self.confidence.observe(max(routing.probabilities.values()))
            for domain, probability in routing.probabilities.items():
                self.probability.labels(domain).observe(probability)
        if routing.gap is not None and routing.router_ms:
            self.gap.observe(routing.gap)
        self.active.observe(len(routing.active))
        self.compositions.labels(self._composition(routing.active)).inc()
        for domain in routing.active:
            self.activations.labels(domain).inc()
            self.weights.labels(domain).observe(routing.weights[domain])

    def observe_timing(self, timing: Timing) -> None:
        """Of a completion that has ended."""
        if timing.arrived is not None and timing.scheduled is not None:
            self.queue.observe(timing.scheduled - timing.arrived)
        if timing.scheduled is not None and timing.first_token is not None:
            self.prefill.observe(timing.first_token - timing.scheduled)

    def _composition(self, active: Sequence[str]) -> str:
        """`chat+math`, sorted; `base` without any; the ones too many are all called `other`."""
        name = "+".join(sorted(active)) or "base"
        if len(self._named) < MOST_COMPOSITIONS:
            self._named.add(name)
        return name if name in self._named else "other"

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"brainstacks_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"brainstacks_{name}", text, labels, registry=self.registry, buckets=buckets)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"brainstacks_{name}", text, value=value)


def _count(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"brainstacks_{name}", text, value=value)
