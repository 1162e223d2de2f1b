"""What the engine does with a request: refuses what cannot run, tells how it was composed, counts it."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from brainstacks.engine.request import CompositionRequest, Event, RouteRequest, Routing, TextEvent
from brainstacks.errors import (
    BrainstacksError,
    ContextTooLong,
    InvalidRequest,
    Overloaded,
    RecordNotFound,
)
from tests.engine.driving import (
    Answer,
    Served,
    finish,
    fixed,
    idle,
    prompt_of,
    request,
    run,
    serve,
    start,
    step_until,
)
from tests.tiny import VOCAB, plain_greedy, tiny_model

pytestmark = pytest.mark.usefixtures("each_backend")


# --- refusals and limits -------------------------------------------------------------------------


def test_what_can_never_run_is_refused_by_name_and_leaves_nothing(served: Served) -> None:
    engine = served.engine
    with pytest.raises(InvalidRequest, match="empty"):
        engine.check(request("r", []))
    with pytest.raises(InvalidRequest, match="token id 259 is out of range"):
        engine.check(request("r", [1, VOCAB]))
    with pytest.raises(InvalidRequest, match="token id -1"):
        engine.check(request("r", [-1]))
    for response_start in (-1, 0, 4):
        with pytest.raises(InvalidRequest, match=f"response_start is {response_start}; it lies in 1..3"):
            engine.check(replace(request("r", prompt_of(3)), response_start=response_start))
    with pytest.raises(
        ContextTooLong, match="500 tokens and max_tokens is 13, together 513; the context is 512"
    ):
        engine.check(request("r", prompt_of(500), max_tokens=13))
    with pytest.raises(InvalidRequest, match="token id 264"):
        engine.check(request("r", [1], logit_bias={VOCAB + 5: 1.0}))
    with pytest.raises(InvalidRequest, match="token id -2"):
        engine.check(request("r", [1], stop_token_ids=(-2,)))
    with pytest.raises(InvalidRequest, match="token id 265"):
        engine.check(request("r", [1], allowed_token_ids=(1, VOCAB + 6)))
    nothing: list[dict[str, Any]] = [
        {"bad_words": ((9, 1), (2,))},
        {"min_tokens": 1, "stop_token_ids": (1, 2)},
    ]
    for nothing_left in nothing:
        with pytest.raises(InvalidRequest, match="may forbid every token of allowed_token_ids"):
            engine.check(request("r", [1], allowed_token_ids=(1, 2), **nothing_left))
    engine.check(request("r", [1], allowed_token_ids=(1, 2), bad_words=((9, 1), (1, 2, 3))))
    with pytest.raises(InvalidRequest, match="'poetry'"):
        engine.check(request("r", [1], fixed(poetry=1.0)))
    assert idle(served)
    assert not engine.has_work


def test_a_request_id_in_use_is_refused_for_generation_and_for_routes(served: Served) -> None:
    (answer,) = start(served.engine, request("same", prompt_of(3)))
    with pytest.raises(InvalidRequest, match="'same' is in use"):
        served.engine.add(request("same", prompt_of(3)), Answer().events.append)
    route = RouteRequest("same", tuple(prompt_of(3)), CompositionRequest("base"))
    with pytest.raises(InvalidRequest, match="'same' is in use"):
        served.engine.add(route, Answer().events.append)
    finish(served.engine)
    assert answer.over


def test_a_full_queue_refuses_the_next_and_the_accepted_ones_finish(tmp_path: Path) -> None:
    served = serve(tmp_path, max_queue=2, max_batch_size=1)
    answers = start(served.engine, request("a", prompt_of(3)), request("b", prompt_of(4)))
    with pytest.raises(Overloaded, match="the queue holds 2"):
        served.engine.add(request("c", prompt_of(5)), Answer().events.append)
    finish(served.engine)
    assert [a.finish() is not None for a in answers] == [True, True]
    (late,) = run(served.engine, request("c", prompt_of(5)))
    assert late.finish() is not None


# --- events and records --------------------------------------------------------------------------


def test_every_request_is_told_first_how_it_was_composed_and_leaves_a_record(served: Served) -> None:
    (answer,) = run(served.engine, request("r", prompt_of(5), fixed(math=0.9, chat=0.05)))
    routing = answer.routed.routing
    assert (routing.mode, routing.probabilities, routing.active) == ("fixed", None, ("math",))
    assert routing.weights == {"chat": 0.05, "code": 0.0, "math": 0.9}
    version = served.registry.snapshot().domain("math").current
    assert {d: (s.version, s.digest) for d, s in routing.stacks.items()} == {"math": (1, version.digest)}
    assert routing.generation == served.registry.generation
    assert served.engine.records.get("r") == routing
    with pytest.raises(RecordNotFound):
        served.engine.records.get("other")


def test_a_request_that_no_client_asked_for_leaves_none(served: Served) -> None:
    run(served.engine, replace(request("part", prompt_of(4)), recorded=False), request("whole", prompt_of(4)))
    assert [record.request_id for record in served.engine.records.recent()] == ["whole"]


def test_the_last_event_of_each_completion_says_when_what_happened_in_its_order(served: Served) -> None:
    (answer,) = run(served.engine, request("r", prompt_of(5), fixed(math=0.9), n=2, seed=1, temperature=1.0))
    for index in range(2):
        *before, last = answer.pieces(index)
        assert last.timing is not None
        times = astuple(last.timing)
        assert None not in times
        assert list(times) == sorted(times)
        assert all(piece.timing is None for piece in before)


def test_pieces_carry_each_token_once_and_one_finish_reason(served: Served) -> None:
    (answer,) = run(served.engine, request("r", prompt_of(5), n=2, seed=1, temperature=1.0))
    for index in range(2):
        pieces = answer.pieces(index)
        assert all(isinstance(p, TextEvent) for p in pieces)
        assert answer.finish(index) in ("stop", "length")
        assert pieces[-1].completion_tokens == len(answer.ids(index))


def test_a_base_without_a_tokenizer_generates_tokens_without_text(tmp_path: Path) -> None:
    served = serve(tmp_path, tokenizer=False)
    prompt = prompt_of(5)
    (answer,) = run(served.engine, request("r", prompt, logprobs=1))
    assert answer.ids() == plain_greedy(tiny_model(), prompt, 8)
    assert answer.text() == ""


def test_load_counts_what_runs_and_waits(tmp_path: Path) -> None:
    served = serve(tmp_path, max_batch_size=2)
    start(served.engine, *(request(f"r{i}", prompt_of(4), max_tokens=30, ignore_eos=True) for i in range(5)))
    assert served.engine.gauges.waiting == 5
    step_until(served.engine, lambda: served.engine.gauges.running == 2)
    assert served.engine.gauges.waiting == 3
    assert 8 <= served.engine.gauges.kv_tokens_used <= served.engine.gauges.kv_tokens_total
    finish(served.engine)
    assert idle(served)


def test_a_request_has_given_back_what_it_held_when_its_last_event_comes(served: Served) -> None:
    held: list[tuple[bool, int]] = []

    def sink(reply: Event | Routing | BrainstacksError) -> None:
        if isinstance(reply, TextEvent):
            held.append((reply.finish_reason is None, served.engine.stacks.in_use("chat")))

    served.engine.add(request("r", prompt_of(5), fixed(chat=1.0), max_tokens=3, ignore_eos=True), sink)
    finish(served.engine)
    assert held == [(True, 1), (True, 1), (False, 0)]
