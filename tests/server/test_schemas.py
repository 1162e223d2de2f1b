"""Hostile values 17, 18, 19 and 22: each is a 400 that names its field, and nothing reaches the engine."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from server.schemas import MAX_SEED, CompletionRequest
from tests.server.byte_tokenizer import VOCAB
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "x"},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
}
COUNTS: list[Any] = [10**9, 10**30, -1, "5", True, 5.5, 1e300, [], {}]


async def refused(client: httpx2.AsyncClient, path: str, field: str, literal: str) -> dict[str, Any]:
    body = json.dumps(PROMPTS[path])[:-1] + f', "{field}": {literal}}}'
    return error_of(await client.post(path, content=body, headers=JSON), 400)


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize("field", ["n", "max_tokens", "min_tokens"])
@pytest.mark.parametrize("value", COUNTS)
async def test_hostile_17_counts(
    client: httpx2.AsyncClient, engine: FakeEngine, path: str, field: str, value: Any
) -> None:
    error = await refused(client, path, field, json.dumps(value))
    assert engine.requests == []
    if error["code"] != "context_length_exceeded":
        assert error["param"] == field


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        *[("/v1/completions", "best_of", value) for value in [*COUNTS, 0]],
        *[("/v1/completions", "logprobs", value) for value in [*COUNTS, 21]],
        *[("/v1/completions", "response_start", value) for value in [*COUNTS, 0, 2]],
        ("/v1/completions", "n", 0),
        ("/v1/chat/completions", "n", 0),
        ("/v1/chat/completions", "max_tokens", 0),
        *[("/v1/chat/completions", "max_completion_tokens", value) for value in [*COUNTS, 0]],
        *[("/v1/chat/completions", "logprobs", value) for value in [*COUNTS, 0, "true"] if value is not True],
    ],
)
async def test_hostile_17_counts_of_one_route(
    client: httpx2.AsyncClient, engine: FakeEngine, path: str, field: str, value: Any
) -> None:
    await refused(client, path, field, json.dumps(value))
    assert engine.requests == []


@pytest.mark.parametrize("value", [*COUNTS, 21])
async def test_hostile_17_top_logprobs(client: httpx2.AsyncClient, engine: FakeEngine, value: Any) -> None:
    body = {**PROMPTS["/v1/chat/completions"], "logprobs": True, "top_logprobs": value}
    assert error_of(await client.post("/v1/chat/completions", json=body), 400)["param"] == "top_logprobs"
    assert engine.requests == []


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize(
    ("field", "literal"),
    [
        *[
            (field, literal)
            for field in (
                "temperature",
                "top_p",
                "min_p",
                "presence_penalty",
                "repetition_penalty",
                "n",
                "seed",
            )
            for literal in ("NaN", "Infinity", "-Infinity", "1e400", '"0.5"', "true", "[]")
        ],
        ("temperature", "-1"),
        ("temperature", "2.1"),
        ("top_p", "2"),
        ("top_p", "0"),
        ("top_p", "-0.1"),
        ("top_k", "-2"),
        ("top_k", "1.5"),
        ("min_p", "1.1"),
        ("presence_penalty", "2.5"),
        ("frequency_penalty", "-2.5"),
        ("repetition_penalty", "0"),
        ("logit_bias", '{"1000000000": 1}'),
        ("logit_bias", f'{{"{VOCAB}": 1}}'),
        ("logit_bias", '{"-1": 1}'),
        ("logit_bias", '{"a": 1}'),
        ("logit_bias", '{"٣": 1}'),
        ("logit_bias", '{"5": 101}'),
        ("logit_bias", '{"5": NaN}'),
        ("logit_bias", '{"5": "1"}'),
        ("logit_bias", "[1]"),
        ("logit_bias", json.dumps({str(i): 1 for i in range(1025)})),
        ("seed", str(2**63)),
        ("seed", str(MAX_SEED + 1)),
        ("seed", str(-(2**63) - 1)),
        ("stop_token_ids", f"[{VOCAB}]"),
        ("stop_token_ids", "[-1]"),
        ("stop_token_ids", json.dumps([1] * 65)),
        ("stream", '"true"'),
        ("stream", "1"),
        ("stream_options", '{"include_usage": true}'),
        ("user", "5"),
    ],
)
async def test_hostile_18_sampling(
    client: httpx2.AsyncClient, engine: FakeEngine, path: str, field: str, literal: str
) -> None:
    await refused(client, path, field, literal)
    assert engine.requests == []


@pytest.mark.parametrize(
    "literal",
    [
        '""',
        "[]",
        "[[]]",
        "null",
        "5",
        "true",
        "{}",
        '["a", 1]',
        "[1, true]",
        "[1, 2.5]",
        "[[1], 2]",
        '[[1], "a"]',
        "[[true]]",
        "[[[1]]]",
        f"[{VOCAB}]",
        "[-1]",
        "[1000000000000]",
        '"\\ud800"',
        '"a\\udc00b"',
        json.dumps(["a"] * 257),
        '["a", ""]',
    ],
)
async def test_hostile_19_prompts(client: httpx2.AsyncClient, engine: FakeEngine, literal: str) -> None:
    body = f'{{"model": "tiny", "prompt": {literal}}}'
    error_of(await client.post("/v1/completions", content=body, headers=JSON), 400)
    assert engine.requests == []


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize(
    "stop",
    [["x"] * 100_000, "x" * 1_000_000, "", ["a", ""], [1], ["a"] * 17, {"a": 1}],
    ids=lambda s: repr(s)[:20],
)
async def test_hostile_22_stop_strings(
    client: httpx2.AsyncClient, engine: FakeEngine, path: str, stop: Any
) -> None:
    error = error_of(await client.post(path, json={**PROMPTS[path], "stop": stop}), 400)
    assert error["param"].startswith("stop")
    assert len(error["message"]) < 1000
    assert engine.requests == []


async def test_more_completions_than_one_request_may_ask_for_are_refused(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    body = {"model": "tiny", "prompt": ["x"] * 3, "n": 86}
    assert error_of(await client.post("/v1/completions", json=body), 400)["param"] == "n"
    assert engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1, "n": 2},
        {"best_of": 2, "stream": True},
        {"min_tokens": 17},
        {"min_tokens": 3, "max_tokens": 2},
        {"suffix": "x"},
        {"guided_json": {}},
    ],
)
async def test_fields_that_do_not_go_together_are_refused(
    client: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    error_of(await client.post("/v1/completions", json={**PROMPTS["/v1/completions"], **fields}), 400)
    assert engine.requests == []


@pytest.mark.parametrize("fields", [{"top_logprobs": 2}, {"max_tokens": 2, "max_completion_tokens": 3}])
async def test_chat_fields_that_do_not_go_together_are_refused(
    client: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    path = "/v1/chat/completions"
    error_of(await client.post(path, json={**PROMPTS[path], **fields}), 400)
    assert engine.requests == []


async def test_suffix_is_refused_by_name(client: httpx2.AsyncClient) -> None:
    error = await refused(client, "/v1/completions", "suffix", '"end"')
    assert error["param"] == "suffix"
    assert "suffix" in error["message"]


def test_the_largest_seed_leaves_room_for_every_completions_own() -> None:
    body = CompletionRequest.model_validate({"model": "m", "prompt": "x", "seed": MAX_SEED, "n": 128})
    assert (body.seed or 0) + (body.n or 0) < 2**63
