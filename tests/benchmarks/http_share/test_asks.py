"""What is asked over HTTP is what is asked in process."""

from __future__ import annotations

from benchmarks.http_share.asks import Ask, Mix, firsts, following
from brainstacks.base_model import BaseModel
from brainstacks.engine.request import CompositionRequest
from server.schemas import ChatRequest

MIX = Mix("fixed", {"chat": 0.5})


def test_a_request_is_what_the_server_makes_of_its_body(tiny_base: BaseModel) -> None:
    ask = Ask("hi there", MIX, 12)
    body = ChatRequest.model_validate(ask.body("base"))
    request = ask.request("name", tiny_base.chat_tokenizer())
    assert request.sampling == body.sampling(12, logprobs=None)
    assert request.prompt_ids == tuple(tiny_base.chat_tokenizer().encode_chat(ask.messages))
    assert body.stream
    assert body.routing is not None
    assert request.composition == CompositionRequest(
        mode=body.routing.mode, weights=body.routing.weights or {}
    )


def test_answers_end_evenly_spread() -> None:
    assert [ask.tokens for ask in firsts(MIX, 4, 64)] == [16, 32, 48, 64]
    assert [ask.tokens for ask in firsts(MIX, 4, 2)] == [1, 1, 1, 2], "no answer is empty"
    assert {ask.tokens for ask in following(MIX, 64)} == {64}
    assert len({ask.text for ask in following(MIX, 64)}) == len(following(MIX, 64))
