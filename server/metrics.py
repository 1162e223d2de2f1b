"""What `/metrics` shows. One registry per app, so that two apps in one process never mix."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from brainstacks.engine.interface import Engine
from brainstacks.engine.request import Routing

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SLOW = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_WEIGHTS = (-1.0, -0.5, 0.0, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)


class EngineCollector:
    """Gauges that are read from the engine at the moment of the scrape."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        load = self.engine.load()
        yield _gauge("running", "Requests that are being generated", load.running)
        yield _gauge("waiting", "Requests in the queue", load.waiting)
        yield _gauge("kv_tokens_used", "KV cache slots in use, in tokens", load.kv_tokens_used)
        yield _gauge("kv_tokens_total", "KV cache slots, in tokens", load.kv_tokens_total)
        yield _gauge("registry_generation", "The registry's manifest number", self.engine.generation)
        tiers = {"device": 0, "host": 0, "disk": 0}
        for status in self.engine.domains():
            tiers[status.residency] = tiers.get(status.residency, 0) + status.bytes
        family = GaugeMetricFamily(
            "brainstacks_stack_bytes", "Bytes of the active stacks per tier", labels=["tier"]
        )
        for tier, size in tiers.items():
            family.add_metric([tier], size)
        yield family


class Metrics:
    """Counters and histograms that the HTTP layer feeds.

    Times are in seconds, except that the names say otherwise; labels take values that the server
    chose (domains, statuses, error codes), never a client's own text.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.responses = self._counter("http_responses", "HTTP responses by status", "status")
        self.errors = self._counter(
            "errors", "Errors by code, those in the middle of a stream included", "code"
        )
        self.uploads = self._counter("uploads", "Uploads of stacks and routers by outcome", "outcome")
        self.aborts = self._counter("aborts", "Requests whose client left before the end")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens in")
        self.completion_tokens = self._counter("completion_tokens", "Tokens out")
        self.activations = self._counter("domain_activations", "Requests that used a domain", "domain")
        self.modes = self._counter("routed_requests", "Requests by mode of composition", "mode")
        self.weights = self._histogram("domain_weight", "Weights of active domains", _WEIGHTS, "domain")
        self.router = self._histogram("router_seconds", "Time of the router pass", _FAST)
        self.first_token = self._histogram("time_to_first_token_seconds", "Request to first token", _SLOW)
        self.inter_token = self._histogram("inter_token_seconds", "Between two tokens of a completion", _FAST)
        self.end_to_end = self._histogram("request_seconds", "Request to last token", _SLOW)

    def observe_routing(self, routing: Routing) -> None:
        self.modes.labels(routing.mode).inc()
        if routing.probabilities is not None:
            self.router.observe(routing.router_ms / 1000)
        for domain in routing.active:
            self.activations.labels(domain).inc()
            self.weights.labels(domain).observe(routing.weights[domain])

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"brainstacks_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"brainstacks_{name}", text, labels, registry=self.registry, buckets=buckets)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"brainstacks_{name}", text, value=value)
