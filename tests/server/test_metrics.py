from __future__ import annotations

import dataclasses
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from brainstacks.engine.request import Timing
from brainstacks.errors import EngineFailure
from server import metrics
from server.app import create_app
from server.settings import Settings
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def value(app: FastAPI, name: str, **labels: str) -> float | None:
    count: float | None = app.state.context.metrics.registry.get_sample_value(f"brainstacks_{name}", labels)
    return count


async def test_a_request_is_counted_in_tokens_times_and_domains(
    client: httpx2.AsyncClient, app: FastAPI
) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/v1/chat/completions", json={**CHAT, "model": "tiny:math", "n": 2, "stream": True})
    assert value(app, "prompt_tokens_total", key="") == 8
    assert value(app, "completion_tokens_total", key="") == 13 + 13 + 14
    assert value(app, "time_to_first_token_seconds_count") == 3
    assert value(app, "inter_token_seconds_count") == 12 + 12 + 13
    assert value(app, "request_seconds_count") == 3
    assert value(app, "domain_activations_total", domain="chat") == 1
    assert value(app, "domain_activations_total", domain="math") == 2
    assert value(app, "domain_weight_bucket", domain="math", le="0.5") == 1
    assert value(app, "domain_weight_bucket", domain="math", le="1.0") == 2
    assert value(app, "router_seconds_count") == 1
    assert value(app, "router_seconds_sum") == pytest.approx(0.0015)
    assert value(app, "routed_requests_total", mode="fixed") == 1
    assert value(app, "http_responses_total", key="", status="200") == 2
    assert value(app, "aborts_total") == 0


async def test_gauges_are_the_engines_own_at_the_scrape(client: httpx2.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    for line in (
        "brainstacks_running 1.0",
        "brainstacks_waiting 2.0",
        "brainstacks_kv_tokens_used 30.0",
        "brainstacks_kv_tokens_total 400.0",
        "brainstacks_admitted_prompt_tokens_total 500.0",
        "brainstacks_reused_prompt_tokens_total 120.0",
        "brainstacks_preemptions_total 3.0",
        "brainstacks_registry_generation 7.0",
        'brainstacks_stack_bytes{tier="device"} 200.0',
        'brainstacks_stack_bytes{tier="host"} 50.0',
        'brainstacks_stack_bytes{tier="disk"} 900.0',
        'brainstacks_stack_budget_bytes{tier="device"} 250.0',
        'brainstacks_stack_budget_bytes{tier="host"} 100.0',
    ):
        assert line in text.splitlines()


async def test_loads_and_evictions_are_counted_by_tier(client: httpx2.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    for line in (
        'brainstacks_stack_loads_total{tier="host"} 3.0',
        'brainstacks_stack_loads_total{tier="disk"} 4.0',
        'brainstacks_stack_evictions_total{tier="device"} 5.0',
        'brainstacks_stack_evictions_total{tier="host"} 1.0',
        "brainstacks_stack_hits_total 8.0",
        "brainstacks_stack_misses_total 7.0",
        "brainstacks_stack_waiting 6.0",
        'brainstacks_stack_load_seconds_bucket{le="0.001"} 1.0',
        'brainstacks_stack_load_seconds_bucket{le="0.005"} 6.0',
        'brainstacks_stack_load_seconds_bucket{le="10.0"} 6.0',
        'brainstacks_stack_load_seconds_bucket{le="+Inf"} 7.0',
        "brainstacks_stack_load_seconds_count 7.0",
        "brainstacks_stack_load_seconds_sum 12.5",
    ):
        assert line in text.splitlines()


async def test_errors_are_counted_by_code_also_in_the_middle_of_a_stream(
    client: httpx2.AsyncClient, app: FastAPI, engine: FakeEngine
) -> None:
    await client.get("/nope")
    await client.get("/admin/stacks")
    await client.post("/v1/chat/completions", json={**CHAT, "nope": 1})
    engine.fail_after = (1, EngineFailure("The step failed"))
    await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    codes = ("not_found", "invalid_api_key", "unsupported_parameter", "engine_failure")
    assert [value(app, "errors_total", code=code) for code in codes] == [1, 1, 1, 1]


async def test_a_client_cannot_grow_the_number_of_series(client: httpx2.AsyncClient, app: FastAPI) -> None:
    def series() -> int:
        return sum(len(family.samples) for family in app.state.context.metrics.registry.collect())

    async def hostile(text: str) -> None:
        await client.get(f"/{text}")
        await client.request(text.upper(), "/health")
        await client.post("/v1/completions", json={"model": text, "prompt": "x", text: 1})
        routing = {"mode": "fixed", "weights": {text: 1.0}}
        await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "routing": routing})

    await hostile("first")
    before = series()
    for i in range(20):
        await hostile(f"other{i}")
    assert series() == before


async def test_two_apps_do_not_share_their_counters(client: httpx2.AsyncClient, app: FastAPI) -> None:
    other = create_app(FakeEngine(), Settings())
    await client.post("/v1/chat/completions", json=CHAT)
    assert value(app, "prompt_tokens_total", key="") == 4
    assert value(other, "prompt_tokens_total", key="") is None


async def test_what_is_routed_is_counted_by_composition_and_by_how_sure_the_router_is(
    client: httpx2.AsyncClient, app: FastAPI
) -> None:
    for model in ("tiny", "tiny", "tiny:base", "tiny:math"):
        await client.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 1})
    named = {"chat+math": 2, "base": 1, "math": 1}
    assert {name: value(app, "compositions_total", composition=name) for name in named} == named
    assert [value(app, "active_domains_bucket", le=le) for le in ("0.0", "1.0", "2.0")] == [1, 2, 4]
    assert value(app, "router_confidence_sum") == pytest.approx(0.9 * 2)
    assert value(app, "router_probability_sum", domain="math") == pytest.approx(0.45 * 2)
    assert value(app, "gap_probability_sum") == pytest.approx(0.25 * 2)
    assert value(app, "stack_tier", domain="math", tier="device") == 1
    assert value(app, "stack_tier", domain="math", tier="disk") == 0


async def test_a_prompt_that_keeps_its_conversation_s_route_is_not_counted_as_read(
    client: httpx2.AsyncClient, app: FastAPI, engine: FakeEngine
) -> None:
    await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
    follows = dataclasses.replace(engine.records[0], router_ms=0.0)
    app.state.context.metrics.observe_routing(follows)
    assert value(app, "compositions_total", composition="chat+math") == 2
    read = ("router_seconds", "router_confidence", "gap_probability")
    assert [value(app, f"{name}_count") for name in read] == [1, 1, 1]


async def test_compositions_beyond_the_first_ones_are_counted_together(
    client: httpx2.AsyncClient, app: FastAPI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_COMPOSITIONS", 2)
    engine.names = ["a", "b", "c"]
    engine.versions = dict.fromkeys(engine.names, 1)
    for name in ("a", "b", "c", "base", "a"):
        await client.post("/v1/completions", json={"model": f"tiny:{name}", "prompt": "x", "max_tokens": 1})
    counts = {name: value(app, "compositions_total", composition=name) for name in ("a", "b", "c", "other")}
    assert counts == {"a": 2, "b": 1, "c": None, "other": 2}


async def test_the_times_that_the_engine_noted_are_shown(
    client: httpx2.AsyncClient, app: FastAPI, engine: FakeEngine
) -> None:
    engine.timing = Timing(arrived=1.0, routing=1.1, routed=1.2, scheduled=3.0, first_token=3.5, ended=9.0)
    await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "n": 2})
    assert value(app, "queue_seconds_sum") == pytest.approx(4.0)
    assert value(app, "prefill_seconds_sum") == pytest.approx(1.0)


class TestKeys:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"api_key": "alice=sk-a,sk-b"}

    async def test_requests_and_tokens_are_counted_by_the_name_of_their_key(
        self, client: httpx2.AsyncClient, app: FastAPI
    ) -> None:
        for key in ("sk-a", "sk-a", "sk-b", "sk-guess"):
            await client.post("/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {key}"})
        tokens = {key: value(app, "prompt_tokens_total", key=key) for key in ("alice", "key-2", "")}
        assert tokens == {"alice": 8, "key-2": 4, "": None}
        assert value(app, "completion_tokens_total", key="alice") == 26
        assert value(app, "http_responses_total", key="alice", status="200") == 2
        assert value(app, "http_responses_total", key="", status="401") == 1
        assert b"sk-" not in app.state.context.metrics.render()
