"""Everything that is wrong is named at once, each by its place and by the rule that it was meant for."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from server.offences import SHOWN
from tests.server.byte_tokenizer import VOCAB
from tests.server.conftest import ADMIN, error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}


JSON = {"Content-Type": "application/json"}


async def refused(client: httpx2.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": "x"} if path == "/v1/completions" else CHAT
    return error_of(await client.post(path, json={**body, **fields}), 400)


async def test_all_offending_fields_are_named_and_param_is_the_first(client: httpx2.AsyncClient) -> None:
    wrong: dict[str, Any] = {"guided_json": {}, "mirostat": 2, "temperature": 3, "n": "5", "stream": "yes"}
    error = await refused(client, "/v1/chat/completions", **wrong)
    assert error["param"] == "guided_json"
    assert error["code"] == "unsupported_parameter"
    assert all(name in error["message"] for name in wrong)
    assert error["message"].startswith("5 things are wrong. ")


async def test_all_broken_rules_between_fields_are_named(client: httpx2.AsyncClient) -> None:
    error = await refused(
        client, "/v1/completions", n=3, best_of=2, stream_options={}, max_tokens=4, max_completion_tokens=5
    )
    assert error["param"] == "stream_options"
    for said in ("stream_options is an object of 0", "max_completion_tokens is 5", "best_of is 2"):
        assert said in error["message"]


async def test_all_that_only_the_model_can_tell_is_named(client: httpx2.AsyncClient) -> None:
    error = await refused(
        client, "/v1/completions", logit_bias={str(VOCAB): 1}, stop_token_ids=[VOCAB], min_tokens=99
    )
    assert error["param"] == "logit_bias"
    assert "stop_token_ids" in error["message"]
    assert "min_tokens" in error["message"]


async def test_a_flood_of_offences_makes_a_short_reply(client: httpx2.AsyncClient) -> None:
    error = await refused(client, "/v1/completions", **{f"x{i}": 1 for i in range(200)})
    assert f"{200 - SHOWN} more" in error["message"]
    assert len(error["message"]) < 2000
    error = await refused(client, "/v1/completions", **{f"x{i}": 1 for i in range(300)})
    assert "at most 256 are read" in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "param", "said"),
    [
        ("prompt", [[1, 2], [-1]], "prompt.1.0", "prompt.1.0 is -1: Input should be greater than or equal"),
        ("prompt", ["a", 5], "prompt.1", "prompt.1 is 5: Input should be a valid string"),
        ("prompt", [1, True], "prompt.1", "prompt.1 is true: Input should be a valid integer"),
        ("prompt", [1, 2.5], "prompt.1", "prompt.1 is 2.5: Input should be a valid integer"),
        ("prompt", [[]], "prompt.0", "prompt.0 is a list of 0: Value should have at least 1 item"),
        ("prompt", {}, "prompt", "prompt is an object of 0: it is a text, a list of texts, a list of"),
        ("stop", "", "stop", "stop is '': String should have at least 1 character"),
        ("stop", ["a", ""], "stop.1", "stop.1 is '': String should have at least 1 character"),
        ("stop", 5, "stop", "stop is 5: it is a text, or a list of at most 16 texts"),
    ],
)
async def test_a_field_of_several_kinds_is_told_the_rule_of_the_kind_that_was_meant(
    client: httpx2.AsyncClient, engine: FakeEngine, field: str, value: Any, param: str, said: str
) -> None:
    error = await refused(client, "/v1/completions", **{field: value})
    assert error["param"] == param
    assert error["message"].startswith(said)
    assert engine.requests == []


async def test_a_message_is_told_its_place(client: httpx2.AsyncClient) -> None:
    for content, param in ((5, "content"), ([{"type": "text"}], "content.0.text"), (None, "content")):
        messages = [*CHAT["messages"], {"role": "user", "content": content}]
        error = await refused(client, "/v1/chat/completions", messages=messages)
        assert error["param"] == f"messages.1.{param}"


async def test_a_null_is_the_default_of_every_field_known_or_not(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    nulls = ("suffix", "tools", "audio", "guided_json", "temperature", "logprobs", "routing")
    for path, body in (("/v1/completions", {"model": "tiny", "prompt": "x"}), ("/v1/chat/completions", CHAT)):
        reply = await client.post(path, json={**body, **dict.fromkeys(nulls)})
        assert reply.status_code == 200, reply.text
        assert "x-brainstacks-ignored" not in reply.headers


async def test_an_integral_float_is_an_integer(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    fields = {"max_tokens": 4.0, "n": 2.0, "seed": 1e3, "stop_token_ids": [3.0], "prompt": [1.0, 2]}
    reply = await client.post("/v1/completions", json={"model": "tiny", **fields})
    assert reply.status_code == 200, reply.text
    (request,) = engine.requests
    assert (request.prompt_ids, request.n) == ((1, 2), 2)
    assert (request.sampling.max_tokens, request.sampling.seed) == (4, 1000)
    assert request.sampling.stop_token_ids == (3,)
    assert all(type(i) is int for i in (*request.prompt_ids, request.n, request.sampling.max_tokens))


async def test_a_query_parameter_that_comes_twice_is_refused_and_not_half_ignored(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    for method, path, name in (
        ("GET", "/admin/requests?domain=chat&domain=math", "domain"),
        ("DELETE", "/admin/stacks/chat?purge=false&purge=true", "purge"),
    ):
        error = error_of(await client.request(method, path, headers=ADMIN), 400)
        assert error["param"] == name
        assert "send it once" in error["message"]
    assert engine.names == ["chat", "math"]


async def test_unknown_query_parameters_are_refused_by_name_on_every_kind_of_route(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    calls: list[tuple[str, str, Any]] = [
        ("PUT", "/admin/stacks/chat?source=http://evil&mode=x", b"file"),
        ("PUT", "/admin/router?source=/etc/passwd", b"file"),
        ("DELETE", "/admin/stacks/chat?source=1&purge=true", None),
        ("GET", "/admin/requests?source=1", None),
        ("GET", "/v1/models?source=1", None),
        ("GET", "/health?source=1", None),
        ("GET", "/health?source=1&source=2", None),
        ("POST", "/v1/completions?source=1", b'{"model": "tiny", "prompt": "x"}'),
    ]
    for method, path, content in calls:
        reply = await client.request(method, path, content=content, headers={**ADMIN, **JSON})
        error = error_of(reply, 400)
        assert (error["param"], error["code"]) == ("source", "unsupported_parameter"), path
        assert ("'mode'" in error["message"]) == ("mode=" in path)
    assert (engine.uploads, engine.requests) == ({}, [])
    assert (await client.get("/admin/requests?domain=chat", headers=ADMIN)).status_code == 200
