"""Which stack moved which token is asked for as one batch of compositions, and told token by token."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from brainstacks.engine.request import CompositionRequest
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

WEIGHTS = {"chat": 0.5, "math": -1.0}
FIXED = {"mode": "fixed", "weights": WEIGHTS}


async def attribute(client: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    return await client.post("/v1/attribution", json={"prompt": "2 + 2 =", "completion": " 4", **body})


async def test_the_base_the_composition_and_that_without_each_stack_are_asked_side_by_side(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    reply = await attribute(client, routing=FIXED)
    assert reply.status_code == 200
    assert [request.composition for request in engine.requests] == [
        CompositionRequest("base"),
        CompositionRequest("fixed", WEIGHTS),
        CompositionRequest("fixed", {"math": -1.0}),
        CompositionRequest("fixed", {"chat": 0.5}),
    ]
    assert {request.prompt_ids for request in engine.requests} == {tuple(b"2 + 2 = 4")}
    assert {request.sampling.max_tokens for request in engine.requests} == {0}
    body = reply.json()
    assert body["prompt_tokens"] == 7
    assert [token["text"] for token in body["tokens"]] == [" ", "4"]
    for token, code in zip(body["tokens"], b" 4", strict=True):
        expected = engine.logprob(code, 0).logprob
        assert (token["token_id"], token["base"], token["composed"]) == (code, expected, expected)
        assert token["without"] == {"chat": expected, "math": expected}
    assert body["sums"]["base"] == pytest.approx(sum(token["base"] for token in body["tokens"]))
    assert set(body["sums"]["without"]) == {"chat", "math"}
    assert body["routing"]["active"] == ["chat", "math"]
    assert reply.headers["x-brainstacks-routing"].startswith("fixed;")


async def test_a_routed_text_is_attributed_to_what_the_router_chose(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    reply = await client.post("/v1/attribution", json={"messages": messages, "completion": "yo"})
    routing = reply.json()["routing"]
    assert routing["mode"] == "routed"
    chosen = {domain: routing["weights"][domain] for domain in routing["active"]}
    assert engine.requests[1].composition == CompositionRequest("fixed", chosen)


async def test_what_an_attribution_sets_without_effect_is_named(client: httpx2.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi", "annotations": []}]
    reply = await client.post("/v1/attribution", json={"messages": messages, "completion": "yo"})
    assert reply.status_code == 200
    assert reply.headers["x-brainstacks-ignored"] == "messages.annotations"


async def test_what_no_client_asked_to_be_generated_is_neither_counted_nor_recorded(
    client: httpx2.AsyncClient, engine: FakeEngine, app: FastAPI
) -> None:
    assert (await attribute(client, routing=FIXED)).status_code == 200
    shown = app.state.context.metrics.render().decode()
    for name in ("prompt_tokens", "domain_activations", "routed_requests", "aborts"):
        lines = [line for line in shown.splitlines() if line.startswith(f"brainstacks_{name}_total")]
        assert all(line.endswith(" 0.0") for line in lines), lines
    assert engine.records == []


async def test_the_base_alone_has_nothing_to_take_out(client: httpx2.AsyncClient) -> None:
    (token, *_) = (await attribute(client, routing={"mode": "base"})).json()["tokens"]
    assert token["without"] == {}
    assert token["base"] == token["composed"]


async def test_token_ids_are_taken_as_they_are(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    await attribute(client, completion=[256, 65])
    assert engine.requests[0].prompt_ids[-2:] == (256, 65)


@pytest.mark.parametrize("completion", ["", [], [-1], [9999], None, "x" * 300])
async def test_a_completion_that_cannot_be_is_refused(
    client: httpx2.AsyncClient, engine: FakeEngine, completion: Any
) -> None:
    error_of(await attribute(client, completion=completion), 400)
    assert engine.requests == []


async def test_a_stack_that_is_replaced_meanwhile_is_a_conflict(
    client: httpx2.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = engine.route

    async def replaced(*args: Any) -> Any:
        routing = await route(*args)
        engine.versions["chat"] = 2
        return routing

    monkeypatch.setattr(engine, "route", replaced)
    error = error_of(await attribute(client, routing=FIXED), 409)
    assert "replaced" in error["message"]


async def test_too_many_stacks_are_refused(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.names = [f"d{i}" for i in range(17)]
    engine.versions = dict.fromkeys(engine.names, 1)
    error = error_of(await attribute(client, routing={"mode": "ungated"}), 400)
    assert error["param"] == "routing"
    assert (await attribute(client, routing={"mode": "ungated", "top": 16})).status_code == 200
