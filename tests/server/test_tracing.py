"""A request is a trace: itself, and in it route, queue, prefill and decode of each completion."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError

from brainstacks.engine.request import Timing
from brainstacks.errors import EngineFailure
from server import tracing
from server.app import create_app
from server.settings import Settings
from server.tracing import Tracing, open_tracing
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

PROMPT = "a secret prompt"
BODY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def client(
    engine: FakeEngine, settings: Settings, exporter: InMemorySpanExporter
) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app(engine, settings, Tracing(SimpleSpanProcessor(exporter)))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generation_is_a_span_with_its_stages_in_it(
    client: httpx2.AsyncClient, engine: FakeEngine, exporter: InMemorySpanExporter, stream: bool
) -> None:
    now = time.perf_counter()
    engine.timing = Timing(now, now + 0.25, now + 1, now + 3, now + 3.5, now + 9)
    await client.post("/v1/completions", json={**BODY, "stream": stream}, headers={"x-request-id": "mine"})
    spans = by_name(exporter)
    request = spans.pop("POST /v1/completions")
    assert request.kind == SpanKind.SERVER
    assert request.status.status_code == StatusCode.UNSET
    assert request.attributes is not None
    expected = {
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "brainstacks.request_id": "mine",
        "brainstacks.domains": ("chat", "math"),
        "gen_ai.usage.input_tokens": len(PROMPT),
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
    }
    assert {name: request.attributes[name] for name in expected} == expected
    assert "secret" not in str(request.to_json())
    seconds = {}
    for name, span in spans.items():
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        seconds[name] = (span.end_time - span.start_time) / 1e9
    assert seconds == pytest.approx({"route": 0.75, "queue": 2.0, "prefill": 0.5, "decode": 5.5}, abs=1e-3)
    assert request.start_time is not None
    assert abs(request.start_time / 1e9 - time.time()) < 60, "on the clock of the wall"


async def test_a_trace_that_the_client_began_goes_on(
    client: httpx2.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    await client.post("/v1/completions", json=BODY, headers=headers)
    await client.post("/v1/completions", json=BODY, headers={"traceparent": "00-nonsense-01"})
    kept, drawn = exporter.get_finished_spans()
    assert kept.parent is not None
    assert (f"{kept.context.trace_id:032x}", f"{kept.parent.span_id:016x}") == (TRACE, PARENT)
    assert kept.context.trace_state == {"vendor": "1"}
    assert drawn.parent is None


async def test_a_trace_that_the_client_does_not_want_is_not_made(
    client: httpx2.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    await client.post("/v1/completions", json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert exporter.get_finished_spans() == ()


async def test_a_failure_is_one_in_the_trace_and_a_refusal_is_none(
    client: httpx2.AsyncClient, engine: FakeEngine, exporter: InMemorySpanExporter
) -> None:
    engine.fail_after = (1, EngineFailure("The step failed"))
    await client.post("/v1/completions", json=BODY)
    await client.post("/v1/completions", json={**BODY, "stream": True})
    await client.post("/v1/completions", json={**BODY, "model": "other"})
    told = [(span.status.status_code, span.status.description) for span in exporter.get_finished_spans()]
    failed = (StatusCode.ERROR, "engine_failure")
    assert told == [failed, failed, (StatusCode.UNSET, None)]


async def test_probes_are_not_traced(client: httpx2.AsyncClient, exporter: InMemorySpanExporter) -> None:
    for route in tracing.PROBES:
        await client.get(route)
    await client.get("/version")
    assert list(by_name(exporter)) == ["GET /version"]


def test_without_the_option_nothing_is_traced() -> None:
    assert open_tracing(None) is None


def test_the_option_is_refused_with_the_way_out_where_the_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings(otlp_endpoint="http://localhost:4318").otlp_endpoint == "http://localhost:4318"
    with pytest.raises(ValidationError, match="no address"):
        Settings(otlp_endpoint="localhost:4318")
    with pytest.raises(ValidationError, match="it holds a name or password; give them in OTEL_"):
        Settings(otlp_endpoint="http://me:secret@localhost:4318")
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"pip install 'brainstacks\[otel\]'"):
        Settings(otlp_endpoint="http://localhost:4318")


def test_the_server_starts_without_the_extra() -> None:
    """What is imported with the application is not of it."""
    code = "import server.app, sys; sys.exit('opentelemetry.sdk' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
