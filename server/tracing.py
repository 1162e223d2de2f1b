"""Spans of requests, for an OpenTelemetry collector: the request, and in it route, queue, prefill and decode.

They are made when a request is over, of the times that were noted on its way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from brainstacks.engine.request import Timing
from server.summary import Summary

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

EXPORT_SECONDS = 5.0
"""What sending a batch of spans may take; also at the end, where a collector is gone."""

PROBES = frozenset({"/health", "/ping", "/ready", "/metrics"})
"""Routes that are asked every few seconds, and are not traced."""

HEADERS = ("traceparent", "tracestate")


class Tracing:
    """Args:
    processor: gets every span as it ends.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        # Of its own: the process's provider stays what it is, so that nobody else's spans come in between.
        provider = TracerProvider(resource=Resource.create({"service.name": "brainstacks"}))
        provider.add_span_processor(processor)
        self._tracer: Tracer = provider.get_tracer("brainstacks")
        self._contexts = TraceContextTextMapPropagator()

    def write(self, summary: Summary, headers: Mapping[str, str]) -> None:
        """The spans of a request that is over; its trace is noted in `summary`.

        Args:
            headers: those of `HEADERS` that it came with, as W3C has them: the trace that it is part of.
        """
        if summary.route in PROBES:
            return
        epoch = time.time_ns() - time.perf_counter_ns()  # read once: all spans of a request share it
        span = self._tracer.start_span(
            f"{summary.method} {summary.route or ''}".rstrip(),
            context=self._contexts.extract(headers, Context()),
            kind=SpanKind.SERVER,
            attributes=_attributes(summary),
            start_time=_unix(summary.begin, epoch),
        )
        summary.trace_id = f"{span.get_span_context().trace_id:032x}"
        for number, timing in enumerate(summary.generation.timings if summary.generation else ()):
            self._parts(span, number, timing, epoch)
        if summary.status >= 500 or (summary.error and summary.status < 400):
            span.set_status(Status(StatusCode.ERROR, summary.error))
        span.end(_unix(summary.end, epoch))

    def _parts(self, parent: Span, number: int, timing: Timing, epoch: int) -> None:
        for name, begin, end in _stages(timing):
            part = self._tracer.start_span(
                name,
                context=set_span_in_context(parent, Context()),
                attributes={"brainstacks.completion": number},
                start_time=_unix(begin, epoch),
            )
            part.end(_unix(end, epoch))


def open_tracing(endpoint: str | None) -> Tracing | None:
    """Spans go to `endpoint` by OTLP over HTTP; None traces nothing."""
    if endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
    return Tracing(BatchSpanProcessor(exporter))


def check_endpoint(endpoint: str) -> None:
    """Raises ValueError: it is no address, or what would send spans there is not installed."""
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"{endpoint!r} is no address; it is such as http://localhost:4318")
    if "@" in urlsplit(endpoint).netloc:  # the log shows the options of a start
        raise ValueError("it holds a name or password; give them in OTEL_EXPORTER_OTLP_HEADERS")
    try:
        there = find_spec("opentelemetry.sdk") and find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        there = None
    if there is None:
        raise ValueError(
            "traces need the extra otel, which is not installed: pip install 'brainstacks[otel]'"
        )


def _stages(timing: Timing) -> Iterator[tuple[str, float, float]]:
    """(name, begin, end) of what a completion came through."""
    times = (timing.routing, timing.routed, timing.scheduled, timing.first_token, timing.ended)
    for name, begin, end in zip(("route", "queue", "prefill", "decode"), times, times[1:], strict=False):
        if begin is not None and end is not None:
            yield name, begin, end


def _attributes(summary: Summary) -> dict[str, Any]:
    """By the names of OpenTelemetry's conventions, where they have one."""
    found: dict[str, Any] = {
        "http.request.method": summary.method,
        "http.route": summary.route,
        "http.response.status_code": summary.status,
        "client.address": summary.client,
        "error.type": summary.error,
        "brainstacks.request_id": summary.request_id,
        "brainstacks.key": summary.key,
    }
    if summary.generation is not None:
        found |= {
            "brainstacks.composition": summary.generation.composition,
            "brainstacks.domains": summary.generation.domains,
            "gen_ai.usage.input_tokens": summary.generation.prompt_tokens,
            "gen_ai.usage.output_tokens": summary.generation.completion_tokens,
            "gen_ai.response.finish_reasons": summary.generation.finish_reason.split("+"),
        }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _unix(seconds: float, epoch: int) -> int:
    """Nanoseconds since 1970 of a time of `time.perf_counter`, whose zero was at `epoch`."""
    return epoch + int(seconds * 1e9)
