"""A text that is scored over HTTP gets the composition's own numbers, also of stacks that act on the response
alone; and to ask for log-probabilities does not change what a prompt is continued with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from brainstacks.base_model import identify_base
from brainstacks.composed_model import ComposedModel
from brainstacks.config import EngineConfig
from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.stacks.registry import Registry
from server.app import create_app
from server.settings import Settings
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine
from tests.tiny import publish_stack, random_stack, stack_config

pytestmark = pytest.mark.anyio

COMPLETIONS = "/v1/completions"
IDS = [5, 9, 2, 6, 5, 3, 5, 8, 9, 7] * 3
ECHOED: dict[str, Any] = {"echo": True, "logprobs": 0}
SCORED: list[dict[str, Any]] = [
    {**ECHOED, "max_tokens": 0},
    {**ECHOED, "max_tokens": 1},  # as lm-eval asks, whose client cannot ask for none
    {"prompt_logprobs": 0, "max_tokens": 0},
    {"prompt_logprobs": 0, "max_completion_tokens": 1},
]
CLOSE = 2e-4


@pytest.fixture
def responding(tiny_directory: Path, registry: Registry, tmp_path: Path) -> Path:
    """A registry of two stacks that act on the response alone."""
    base = identify_base(tiny_directory)
    for seed, domain in enumerate(("law", "math")):
        stack = random_stack(base.dims, seed, config=stack_config(applies="response"))
        publish_stack(registry, base, domain, stack, tmp_path)
    return tmp_path / "registry"


@pytest.fixture
def model(tiny_directory: Path, responding: Path) -> ComposedModel:
    return ComposedModel.load(tiny_directory, responding, "none", "cpu", "float32")


@pytest.fixture
async def served(
    tiny_directory: Path, responding: Path, settings: Settings
) -> AsyncIterator[httpx2.AsyncClient]:
    engine = AsyncEngine.open(
        base=str(tiny_directory),
        registry=str(responding),
        quantization="none",
        device="cpu",
        dtype="float32",
        config=EngineConfig(backend="torch"),
    )
    transport = httpx2.ASGITransport(app=create_app(engine, settings))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
    await engine.close()


async def post(client: httpx2.AsyncClient, path: str = COMPLETIONS, **body: Any) -> Any:
    reply = await client.post(path, json={"model": "tiny-llama:ungated", **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def logprobs_of(choice: dict[str, Any], ids: Sequence[int]) -> list[float]:
    """What either field says of every token of a prompt but its first."""
    if "prompt_logprobs" in choice:
        told = zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)
        return [one[str(token_id)]["logprob"] for one, token_id in told]
    found: list[float] = choice["logprobs"]["token_logprobs"][1 : len(ids)]
    return found


def plain(model: ComposedModel, ids: Sequence[int], weights: Any, start: int | None = None) -> list[float]:
    """The same, in one plain forward."""
    logprobs = model.logits(list(ids), weights, response_start=start)[0].log_softmax(-1)
    return [float(logprobs[place, token_id]) for place, token_id in enumerate(ids[1:])]


@pytest.mark.parametrize("how", SCORED)
async def test_a_scored_text_is_all_response(
    served: httpx2.AsyncClient, model: ComposedModel, how: dict[str, Any]
) -> None:
    weights: dict[str, Any] = {"base": None, "ungated": "ungated", "math": {"math": 1.0}}
    found = {}
    for name, of in weights.items():
        (choice,) = (await post(served, model=f"tiny-llama:{name}", prompt=IDS, **how))["choices"]
        found[name] = logprobs_of(choice, IDS)
        assert found[name] == pytest.approx(plain(model, IDS, of, 1), abs=CLOSE)
    for one, other in (("base", "ungated"), ("base", "math"), ("ungated", "math")):
        differences = [abs(a - b) for a, b in zip(found[one], found[other], strict=True)]
        assert min(differences[:3]) > CLOSE, "from the second token on"


async def test_an_answer_is_scored_as_it_was_generated(
    served: httpx2.AsyncClient, model: ComposedModel
) -> None:
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    (choice,) = (await post(served, prompt=IDS, logprobs=0, **asked))["choices"]
    answer = choice["token_ids"]
    whole: dict[str, Any] = {"prompt": [*IDS, *answer], "response_start": len(IDS)}
    (scored,) = (await post(served, **whole, **ECHOED, max_tokens=0))["choices"]
    told = scored["logprobs"]["token_logprobs"]
    assert told[len(IDS) :] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=CLOSE)
    assert told[1 : len(IDS)] == pytest.approx(plain(model, IDS, None)[: len(IDS) - 1], abs=CLOSE)


async def test_a_response_start_means_what_attribution_tells(served: httpx2.AsyncClient) -> None:
    prompt, answer = "What is it? ", "It is this."
    tokens = (await post(served, "/v1/attribution", prompt=prompt, completion=answer))["tokens"]
    how: dict[str, Any] = {"prompt_logprobs": 0, "max_tokens": 0, "response_start": len(prompt)}
    (choice,) = (await post(served, prompt=prompt + answer, **how))["choices"]
    told = logprobs_of(choice, (prompt + answer).encode())[-len(answer) :]
    assert told == pytest.approx([token["composed"] for token in tokens], abs=CLOSE)
    assert told != pytest.approx([token["base"] for token in tokens], abs=CLOSE)


async def test_log_probabilities_of_a_prompt_do_not_change_what_it_is_continued_with(
    served: httpx2.AsyncClient, model: ComposedModel
) -> None:
    asked: dict[str, Any] = {"prompt": IDS, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    asked["return_token_ids"] = True
    (unscored,) = (await post(served, **asked))["choices"]
    scorings: list[dict[str, Any]] = [ECHOED, {"prompt_logprobs": 0}]
    for how in scorings:
        (choice,) = (await post(served, **asked, **how))["choices"]
        assert choice["token_ids"] == unscored["token_ids"]
        assert logprobs_of(choice, IDS) == pytest.approx(plain(model, IDS, "ungated"), abs=CLOSE)
    (begun,) = (await post(served, **asked, response_start=1))["choices"]
    assert begun["token_ids"] != unscored["token_ids"], "it goes on in an answer, not after a prompt"


async def test_a_conversation_is_a_prompt_but_for_the_message_that_is_gone_on_in(
    served: httpx2.AsyncClient, model: ComposedModel
) -> None:
    path = "/v1/chat/completions"
    messages = [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "I say"}]
    how: dict[str, Any] = {
        "messages": messages,
        "prompt_logprobs": 0,
        "max_tokens": 1,
        "return_token_ids": True,
    }
    body = await post(served, path, **how)
    ids = body["prompt_token_ids"]
    assert logprobs_of(body, ids) == pytest.approx(plain(model, ids, None), abs=CLOSE)
    body = await post(served, path, **how, continue_final_message=True)
    ids = body["prompt_token_ids"]
    answer = len("I say")
    expected = plain(model, ids, "ungated", len(ids) - answer)
    assert logprobs_of(body, ids) == pytest.approx(expected, abs=CLOSE)
    assert expected[-answer:] != pytest.approx(plain(model, ids, None)[-answer:], abs=CLOSE)


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        *((how, 1) for how in SCORED),
        ({**ECHOED, "max_tokens": 0, "truncate_prompt_tokens": 2}, 1),
        ({**ECHOED, "max_tokens": 0, "response_start": 3}, 3),
        ({**ECHOED, "max_tokens": 2}, None),
        (ECHOED, None),
        ({"prompt_logprobs": 0}, None),
        ({"echo": True, "max_tokens": 1}, None),
        ({"logprobs": 1, "max_tokens": 1}, None),
        ({"max_tokens": 0}, None),
        ({"response_start": 4}, 4),
        ({"response_start": 2.0, "max_tokens": 5}, 2),
    ],
)
async def test_where_the_response_begins_reaches_the_engine(
    client: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any], start: int | None
) -> None:
    reply = await client.post(COMPLETIONS, json={"model": "tiny", "prompt": ["abcd", "efghi"], **fields})
    assert reply.status_code == 200, reply.text
    assert [request.response_start for request in engine.requests] == [start, start]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_start": 5}, "response_start is 5; it is at most the prompt's tokens (4)"),
        ({"response_start": 4, "prompt": ["abcd", "abc"]}, "(3)"),
        ({"response_start": 2**31}, "response_start is 2147483648"),
        ({"response_start": 0}, "response_start is 0"),
        ({"response_start": 1, "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        ({"response_start": 5, "allowed_token_ids": [9999]}, "allowed_token_ids has token id 9999"),
    ],
)
async def test_a_response_that_cannot_begin_there_is_refused_by_name(
    client: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any], message: str
) -> None:
    reply = await client.post(COMPLETIONS, json={"model": "tiny", "prompt": "abcd", **fields})
    error = error_of(reply, 400)
    assert message in error["message"]
    assert "response_start" in error["message"]
    assert error["param"] in ("response_start", "allowed_token_ids")
    assert engine.requests == []


async def test_a_conversation_is_not_told_where_its_response_begins(client: httpx2.AsyncClient) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "response_start": 1}
    assert error_of(await client.post("/v1/chat/completions", json=body), 400)["param"] == "response_start"
