"""A completion by HTTP: every prompt and field reaches the engine, and what does not fit is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from brainstacks.engine.request import CompositionRequest, SamplingParams
from brainstacks.errors import Overloaded
from tests.server.completing import REPLY, complete
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_a_completion_has_text_usage_and_routing(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    reply = await client.post("/v1/completions", json={"model": "tiny", "prompt": "hi"})
    body = reply.json()
    request_id = reply.headers["x-request-id"]
    assert body["id"] == f"cmpl-{request_id}"
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": REPLY, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 13, "total_tokens": 15}
    assert body["routing"]["request_id"] == request_id
    assert body["routing"]["active"] == ["chat", "math"]
    assert body["routing"]["stacks"]["chat"] == {"version": 1, "digest": "digest-chat"}
    assert reply.headers["x-brainstacks-routing"] == "routed;chat=0.900;math=0.450"
    assert engine.requests[0].sampling == SamplingParams(max_tokens=16)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("hi", [(104, 105)]),
        (["hi", "yo"], [(104, 105), (121, 111)]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
        (["hi"], [(104, 105)]),
    ],
)
async def test_every_form_of_prompt_reaches_the_engine_as_token_ids(
    client: httpx2.AsyncClient, engine: FakeEngine, prompt: Any, ids: list[tuple[int, ...]]
) -> None:
    body = await complete(client, prompt=prompt)
    assert [request.prompt_ids for request in engine.requests] == ids
    assert [choice["index"] for choice in body["choices"]] == list(range(len(ids)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, ids))


async def test_several_prompts_have_ids_and_routing_of_their_own(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    body = await complete(client, prompt=["a", "b"], n=2)
    first, second = engine.requests
    assert second.request_id == f"{first.request_id}:1"
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    owners = [choice["routing"]["request_id"] for choice in body["choices"]]
    assert owners == [first.request_id] * 2 + [second.request_id] * 2
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 54, "total_tokens": 56}


async def test_all_sampling_fields_reach_the_engine(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    await complete(
        client,
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.2,
        logit_bias={"65": -100, "66": 5.5},
        seed=11,
        stop=["\n", "END"],
        stop_token_ids=[3],
        ignore_eos=True,
        min_tokens=2,
        n=2,
        logprobs=3,
    )
    (request,) = engine.requests
    assert request.n == 2
    assert request.sampling == SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=-1.5,
        repetition_penalty=1.2,
        logit_bias={65: -100.0, 66: 5.5},
        seed=11,
        stop=("\n", "END"),
        stop_token_ids=(3,),
        ignore_eos=True,
        min_tokens=2,
        logprobs=3,
    )


async def test_null_fields_mean_their_defaults(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    names = ["max_tokens", "temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream", "logprobs"]
    await complete(client, **dict.fromkeys([*names, "best_of", "echo", "user", "routing", "stream_options"]))
    assert engine.requests[0].sampling == SamplingParams(max_tokens=16)


async def test_echo_gives_arrays_exactly_as_long_as_prompt_and_completion_null_first(
    client: httpx2.AsyncClient,
) -> None:
    body = await complete(client, prompt="né", echo=True, logprobs=2, max_tokens=9)
    (choice,) = body["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "néHello, w\N{REPLACEMENT CHARACTER}"[:-1]
    assert {len(array) for array in logprobs.values()} == {3 + 9}
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value is not None for value in logprobs["token_logprobs"][1:])
    # Both bytes of "é" start where it does.
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


async def test_max_tokens_0_with_echo_only_evaluates_the_prompt(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    body = await complete(client, prompt="abc", echo=True, logprobs=0, max_tokens=0)
    (choice,) = body["choices"]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.598, -0.599]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    assert engine.requests[0].sampling.prompt_logprobs == 0


async def test_top_logprobs_hold_the_chosen_token_too(client: httpx2.AsyncClient) -> None:
    body = await complete(client, logprobs=3, max_tokens=1)
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"H": -0.572, "I": -0.573, "J": -0.574}]


async def test_best_of_keeps_the_likeliest_and_counts_all(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    body = await complete(client, n=2, best_of=4)
    # The fake's completion i ends in i marks and its mean log-probability grows with i.
    assert [choice["text"] for choice in body["choices"]] == [f"{REPLY}!!!", f"{REPLY}!!"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert engine.requests[0].n == 4
    assert body["usage"]["completion_tokens"] == 13 + 14 + 15 + 16


async def test_one_refused_prompt_of_several_aborts_the_others(
    client: httpx2.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.hold = asyncio.Event()  # the first prompt is in the middle of its answer
    compose = engine._compose

    def refuse_the_second(request_id: str, composition: CompositionRequest, tenant: str) -> Any:
        if request_id.endswith(":1"):
            raise Overloaded("The queue is full")
        return compose(request_id, composition, tenant)

    monkeypatch.setattr(engine, "_compose", refuse_the_second)
    error_of(await client.post("/v1/completions", json={"model": "tiny", "prompt": ["a", "b"]}), 429)
    assert set(engine.aborted) == {request.request_id for request in engine.requests}
    assert len(engine.aborted) == 2


async def test_a_prompt_over_the_context_is_400_with_both_counts(client: httpx2.AsyncClient) -> None:
    for fields in ({"prompt": "x" * 257, "max_tokens": 0}, {"prompt": "x" * 257}, {"prompt": [1] * 257}):
        error = error_of(await client.post("/v1/completions", json={"model": "tiny", **fields}), 400)
        assert error["code"] == "context_length_exceeded"
        assert "257" in error["message"]
        assert "256" in error["message"]


async def test_prompt_and_max_tokens_have_to_fit_together(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    fits = {"model": "tiny", "prompt": "x" * 250, "max_tokens": 6}
    assert (await client.post("/v1/completions", json=fits)).status_code == 200
    error = error_of(await client.post("/v1/completions", json={**fits, "max_tokens": 7}), 400)
    assert error["code"] == "context_length_exceeded"


async def test_the_default_of_max_tokens_gives_way_to_the_context(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    await complete(client, prompt="x" * 250)
    assert engine.requests[0].sampling.max_tokens == 6
    full = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 256})
    assert error_of(full, 400)["code"] == "context_length_exceeded"


async def test_text_of_special_tokens_stays_text(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    await complete(client, prompt="<eos><user>")
    assert max(engine.requests[0].prompt_ids) < 256


@pytest.mark.parametrize("prompt", ["   ", "\x00", "\U0001f600", "\u2028"])
async def test_odd_prompts_have_a_defined_answer(
    client: httpx2.AsyncClient, engine: FakeEngine, prompt: str
) -> None:
    body = await complete(client, prompt=prompt, echo=True)
    assert body["choices"][0]["text"] == prompt + REPLY
    assert engine.requests[0].prompt_ids == tuple(prompt.encode())
