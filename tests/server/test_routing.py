from __future__ import annotations

from typing import Any

import httpx2
import pytest

from brainstacks.engine.request import CompositionRequest
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("model", "composition"),
    [
        ("tiny", CompositionRequest()),
        ("tiny:base", CompositionRequest(mode="base")),
        ("tiny:ungated", CompositionRequest(mode="ungated")),
        ("tiny:math", CompositionRequest(mode="fixed", weights={"math": 1.0})),
    ],
)
async def test_the_model_name_chooses_the_composition(
    client: httpx2.AsyncClient, engine: FakeEngine, model: str, composition: CompositionRequest
) -> None:
    reply = await client.post("/v1/completions", json={"model": model, "prompt": "x"})
    assert engine.requests[0].composition == composition
    assert reply.json()["routing"]["mode"] == composition.mode
    assert reply.json()["model"] == model


@pytest.mark.parametrize(
    ("field", "composition"),
    [
        ({}, CompositionRequest()),
        ({"top": 1}, CompositionRequest(top=1)),
        ({"mode": "base"}, CompositionRequest(mode="base")),
        ({"mode": "ungated", "top": 2}, CompositionRequest(mode="ungated", top=2)),
        (
            {"mode": "fixed", "weights": {"chat": 0.85, "math": -2}},
            CompositionRequest(mode="fixed", weights={"chat": 0.85, "math": -2.0}),
        ),
        ({"mode": "fixed", "weights": {}}, CompositionRequest(mode="fixed")),
        ({"stacks": {"math": 3}}, CompositionRequest(stacks={"math": 3})),
        ({"stacks": {"math": "a" * 64}}, CompositionRequest(stacks={"math": "a" * 64})),
    ],
)
async def test_the_routing_field_chooses_the_composition(
    client: httpx2.AsyncClient, engine: FakeEngine, field: dict[str, Any], composition: CompositionRequest
) -> None:
    for path, prompt in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        reply = await client.post(path, json={"model": "tiny", **prompt, "routing": field})
        assert reply.status_code == 200
    assert [request.composition for request in engine.requests] == [composition] * 2


@pytest.mark.parametrize(
    "field",
    [
        {"mode": "fixed", "weights": {"nope": 1.0}},
        {"mode": "fixed", "weights": {"chat": 1e9}},
        {"mode": "fixed", "weights": {"chat": -2.1}},
        {"mode": "fixed", "weights": {"chat": "1"}},
        {"mode": "fixed", "weights": {"chat": True}},
        {"mode": "fixed", "weights": {"chat": None}},
        {"mode": "fixed", "weights": [["chat", 1]]},
        {"mode": "fixed"},
        {"mode": "routed", "weights": {"chat": 1.0}},
        {"weights": {"chat": 1.0}},
        {"mode": "magic"},
        {"mode": "base", "top": 1},
        {"top": 0},
        {"top": -1},
        {"top": True},
        {"top": 10**9},
        {"floor": 0.1},
        {"stacks": {"math": 0}},
        {"stacks": {"math": "abc"}},
        {"stacks": {"math": 1.5}},
        {"mode": "base", "stacks": {"math": 1}},
        {"mode": "ungated", "sticky": "a"},
        {"sticky": ""},
        {"sticky": "x" * 129},
        {"sticky": 1},
        "routed",
    ],
)
async def test_hostile_23_wrong_routing_is_400_and_names_the_field(
    client: httpx2.AsyncClient, engine: FakeEngine, field: Any
) -> None:
    for path in ("/v1/completions", "/v1/route"):
        reply = await client.post(path, json={"model": "tiny", "prompt": "x", "routing": field})
        assert error_of(reply, 400)["param"].startswith("routing")
    assert engine.requests == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
async def test_hostile_23_a_weight_that_is_no_number_is_400(
    client: httpx2.AsyncClient, engine: FakeEngine, number: str
) -> None:
    valid = '{"model": "tiny", "prompt": "x", "routing": {"mode": "fixed", "weights": {"chat": 0.5}}}'
    body = valid.replace("0.5", number)
    reply = await client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    error_of(reply, 400)
    assert engine.requests == []


async def test_a_model_that_has_chosen_takes_no_routing_field(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    body = {"model": "tiny:chat", "prompt": "x", "routing": {"mode": "base"}}
    assert error_of(await client.post("/v1/completions", json=body), 400)["param"] == "routing"
    assert engine.requests == []


async def test_route_tells_the_composition_and_generates_nothing(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    for prompt in ({"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}):
        reply = await client.post("/v1/route", json=prompt)
        body = reply.json()
        assert body["probabilities"] == {"chat": 0.9, "math": 0.45}
        assert body["weights"] == {"chat": 0.9, "math": 0.45}
        assert body["active"] == ["chat", "math"]
        assert body["routed_by"] == {"chat": "router", "math": "router"}
        assert body["gap"] == 0.25
        assert body["stacks"]["math"] == {"version": 1, "digest": "digest-math"}
        assert body["router_ms"] == 1.5
        assert body["request_id"] == reply.headers["x-request-id"]
        assert reply.headers["x-brainstacks-routing"] == "routed;chat=0.900;math=0.450"
    assert engine.requests == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ""},
        {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
        {"prompt": ["x"]},
        {"prompt": "x", "max_tokens": 1},
        {"prompt": "x" * 257},
    ],
)
async def test_route_refuses_what_generation_would(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    assert error_of(await client.post("/v1/route", json=body), 400)["type"] == "invalid_request_error"


async def test_a_recent_requests_routing_is_remembered_under_its_id(client: httpx2.AsyncClient) -> None:
    reply = await client.post(
        "/v1/completions", json={"model": "tiny", "prompt": "x"}, headers={"x-request-id": "mine-1"}
    )
    record = await client.get("/v1/routing/mine-1")
    assert record.json() == reply.json()["routing"]
    assert error_of(await client.get("/v1/routing/other"), 404)["code"] == "record_not_found"
