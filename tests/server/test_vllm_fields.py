"""Fields that vLLM has beside OpenAI's reach the engine and come back as vLLM gives them."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.server.byte_tokenizer import ASSISTANT, EOS, USER, VOCAB
from tests.server.completing import REPLY, chunks_of
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "tiny", "prompt": "hi"},
    CHAT: {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
}


async def post(client: httpx2.AsyncClient, path: str, **fields: Any) -> Any:
    reply = await client.post(path, json={**BODIES[path], **fields})
    assert reply.status_code == 200, reply.text
    return chunks_of(reply.text) if fields.get("stream") else reply.json()


@pytest.mark.parametrize("path", BODIES)
async def test_what_may_be_chosen_reaches_the_engine_as_token_ids(
    client: httpx2.AsyncClient, engine: FakeEngine, path: str
) -> None:
    await post(
        client,
        path,
        allowed_token_ids=[3, 1, 3],
        bad_words=["ab", " c"],
        skip_special_tokens=False,
        priority=3,
    )
    sampling = engine.requests[0].sampling
    assert sampling.allowed_token_ids == (3, 1)
    assert sampling.bad_words == (tuple(b"ab"), tuple(b" ab"), tuple(b" c"))
    assert sampling.skip_special_tokens is False
    assert engine.requests[0].priority == 3


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed_token_ids": []},
        {"allowed_token_ids": [VOCAB]},
        {"allowed_token_ids": [-1]},
        {"bad_words": [""]},
        {"bad_words": ["x"] * 65},
        {"bad_words": "x"},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -2},
        {"truncate_prompt_tokens": 257},
        {"prompt_logprobs": -1},
        {"prompt_logprobs": 21},
        {"prompt_logprobs": 1, "stream": True},
        {"return_token_ids": 1},
        {"skip_special_tokens": "no"},
        {"priority": -1},
    ],
)
async def test_wrong_values_are_refused_by_name(
    client: httpx2.AsyncClient, engine: FakeEngine, path: str, wrong: dict[str, Any]
) -> None:
    error = error_of(await client.post(path, json={**BODIES[path], **wrong}), 400)
    assert error["param"].split(".")[0] == next(iter(wrong))
    assert engine.requests == []


async def test_max_tokens_may_stand_beside_an_equal_max_completion_tokens(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    for path in BODIES:
        await post(client, path, max_tokens=5, max_completion_tokens=5)
        await post(client, path, max_completion_tokens=5)
    assert [request.sampling.max_tokens for request in engine.requests] == [5] * 4


async def test_prompt_logprobs_are_objects_by_token_id_null_first(client: httpx2.AsyncClient) -> None:
    in_choice = (await post(client, COMPLETIONS, prompt_logprobs=1))["choices"][0]["prompt_logprobs"]
    assert in_choice == [
        None,
        {
            "105": {"logprob": -0.605, "rank": 1, "decoded_token": "i"},
        },
    ]
    beside = await post(client, CHAT, prompt_logprobs=2)
    assert [None if one is None else list(one) for one in beside["prompt_logprobs"]] == [
        None, ["104", "105"], ["105", "106"], [str(ASSISTANT), "2", "3"],
    ]  # fmt: skip
    assert beside["prompt_logprobs"][3][str(ASSISTANT)]["rank"] == 7
    assert beside["prompt_logprobs"][3]["3"]["rank"] == 2
    assert "prompt_logprobs" not in await post(client, CHAT)


async def test_prompt_logprobs_go_with_echo_and_its_own_count(client: httpx2.AsyncClient) -> None:
    (choice,) = (await post(client, COMPLETIONS, prompt_logprobs=3, logprobs=1, echo=True))["choices"]
    assert len(choice["prompt_logprobs"][1]) == 3
    assert len(choice["logprobs"]["top_logprobs"][1]) == 1


@pytest.mark.parametrize("path", BODIES)
async def test_token_ids_come_whole_and_streamed(client: httpx2.AsyncClient, path: str) -> None:
    prompt = [*b"hi"] if path == COMPLETIONS else [USER, *b"hi", ASSISTANT]
    whole = await post(client, path, return_token_ids=True, n=2)
    assert [choice["token_ids"] for choice in whole["choices"]] == [
        [*REPLY.encode()],
        [*f"{REPLY}!".encode()],
    ]
    streamed = await post(client, path, return_token_ids=True, n=2, stream=True)
    found: dict[int, list[int]] = {0: [], 1: []}
    for chunk in streamed:
        for choice in chunk["choices"]:
            found[choice["index"]] += choice.get("token_ids", [])
    assert found == {0: [*REPLY.encode()], 1: [*f"{REPLY}!".encode()]}
    if path == COMPLETIONS:
        prompts = [one["prompt_token_ids"] for one in whole["choices"]]
        first = [c["choices"][0] for c in streamed if "prompt_token_ids" in c["choices"][0]]
        assert [one["index"] for one in first] == [0, 1]
        assert [*prompts, *(one["prompt_token_ids"] for one in first)] == [prompt] * 4
    else:
        assert whole["prompt_token_ids"] == prompt
        assert [chunk.get("prompt_token_ids") for chunk in streamed][:2] == [prompt, None]
    assert "token_ids" not in (await post(client, path))["choices"][0]


@pytest.mark.parametrize("path", BODIES)
async def test_continuous_usage_counts_up_in_every_chunk(client: httpx2.AsyncClient, path: str) -> None:
    for more in ({}, {"include_usage": True}):
        options = {"continuous_usage_stats": True, **more}
        chunks = await post(client, path, stream=True, stream_options=options)
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[0] <= 1
        assert counts[-1] == 13
        assert (chunks[-1]["choices"] == []) == bool(more)


@pytest.mark.parametrize("path", BODIES)
async def test_a_prompt_is_truncated_from_its_left(
    client: httpx2.AsyncClient, engine: FakeEngine, path: str
) -> None:
    await post(client, path, truncate_prompt_tokens=1)
    await post(client, path, truncate_prompt_tokens=99)
    whole = engine.requests[1].prompt_ids
    assert engine.requests[0].prompt_ids == whole[-1:]


async def test_a_truncated_prompt_fits_and_is_echoed_as_it_ran(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    asked = {"prompt": "a" * 300 + "b" * 200, "truncate_prompt_tokens": -1, "max_tokens": 56}
    body = await post(client, COMPLETIONS, **asked, echo=True)
    assert engine.requests[0].prompt_ids == (*b"b" * 200,)
    assert body["choices"][0]["text"] == "b" * 200 + REPLY
    await post(client, COMPLETIONS, prompt="a" * 500, truncate_prompt_tokens=-1)
    assert len(engine.requests[1].prompt_ids) == 255


async def test_the_options_of_the_chat_template_reach_it(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    plain = (USER, ord("a"), ASSISTANT, ord("b"))
    for fields, ids in (
        ({"continue_final_message": True}, plain),
        ({"add_generation_prompt": False}, plain),
        ({"add_special_tokens": True}, (EOS, *plain, ASSISTANT)),
        ({"chat_template_kwargs": {"enable_thinking": True}}, (*plain, *b"think", ASSISTANT)),
    ):
        await post(client, CHAT, messages=messages, **fields)
        assert engine.requests.pop().prompt_ids == ids
        tokenized = await client.post("/tokenize", json={"messages": messages, **fields})
        assert tokenized.json()["tokens"] == list(ids)
    both = {**BODIES[CHAT], "continue_final_message": True, "add_generation_prompt": True}
    assert error_of(await client.post(CHAT, json=both), 400)["param"] == "continue_final_message"
    text = {"prompt": "x", "continue_final_message": True}
    assert error_of(await client.post("/tokenize", json=text), 400)["param"] == "continue_final_message"


async def test_what_an_answer_goes_on_in_is_a_response(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cdef"}]
    for fields, start in (
        ({}, None),
        ({"continue_final_message": True}, 4),
        ({"continue_final_message": True, "truncate_prompt_tokens": 6}, 2),
        ({"continue_final_message": True, "truncate_prompt_tokens": 2}, 1),
    ):
        await post(client, CHAT, messages=messages, **fields)
        assert engine.requests.pop().response_start == start


@pytest.mark.parametrize("name", ["a\r\nx-evil: 1", "a, b", "é", "", "x" * 65])
async def test_a_variable_that_no_header_could_name_is_refused(client: httpx2.AsyncClient, name: str) -> None:
    refused = await client.post(CHAT, json={**BODIES[CHAT], "chat_template_kwargs": {name: 1}})
    assert error_of(refused, 400)["param"] == f"chat_template_kwargs.{name}"[:85]


async def test_the_tokenizer_tells_of_itself(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/tokenizer_info")).json()["tokenizer_class"] == "ByteTokenizer"
