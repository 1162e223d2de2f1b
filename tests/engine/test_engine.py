"""What a request gets from the engine: seeds, stops, limits, log-probabilities, refusals."""

from __future__ import annotations

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
from tests.tiny import END, VOCAB, plain_greedy, plain_logits, tiny_model

pytestmark = pytest.mark.usefixtures("each_backend")

ASCII = {token: -100.0 for token in range(VOCAB) if not 32 <= token < 127}
"""A bias that leaves printable ASCII: the text of a random model is then text."""


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return serve(tmp_path)


# --- seeds and n ---------------------------------------------------------------------------------


def test_n_completions_equal_n_requests_with_the_seeds_that_follow(served: Served) -> None:
    prompt = prompt_of(6)
    sampling: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 10}
    (together,) = run(served.engine, request("n", prompt, fixed(chat=1.0), n=3, seed=5, **sampling))
    apart = run(
        served.engine, *(request(f"{i}", prompt, fixed(chat=1.0), seed=5 + i, **sampling) for i in range(3))
    )
    assert [together.ids(i) for i in range(3)] == [one.ids() for one in apart]
    assert [together.text(i) for i in range(3)] == [one.text() for one in apart]
    assert together.ids(0) != together.ids(1)


def test_a_seeded_request_is_the_same_alone_and_in_a_crowd(served: Served) -> None:
    wanted = request("wanted", prompt_of(5), fixed(math=0.8), seed=11, temperature=1.0, max_tokens=12)
    (alone,) = run(served.engine, wanted)
    crowd = [
        request(f"c{i}", prompt_of(3 + i), fixed(chat=1.0), temperature=1.0, max_tokens=9) for i in range(5)
    ]
    answers = run(served.engine, *crowd[:3], wanted, *crowd[3:])
    assert answers[3].ids() == alone.ids()
    assert answers[3].text() == alone.text()


# --- where a completion ends ---------------------------------------------------------------------


def test_a_stop_string_ends_the_text_before_it_and_never_shows(served: Served) -> None:
    prompt = prompt_of(7)
    (free,) = run(served.engine, request("free", prompt, max_tokens=20, logit_bias=ASCII))
    stop = free.text()[5:8]
    (answer,) = run(
        served.engine, request("stop", prompt, max_tokens=20, logit_bias=ASCII, stop=("~~~~", stop))
    )
    assert answer.text() == free.text()[: free.text().index(stop)]
    assert answer.finish() == "stop"
    last = answer.pieces()[-1]
    assert last.stop_reason == stop
    assert last.completion_tokens == len(answer.ids()) == free.text().index(stop) + 3


def test_text_is_whole_characters_and_tokens_are_all_reported(served: Served) -> None:
    # Alternate the two bytes of "é": every second token completes a character.
    bias = {token: -100.0 for token in range(VOCAB) if token not in (0xC3, 0xA9)}
    (answer,) = run(
        served.engine, request("r", prompt_of(4), max_tokens=12, logit_bias=bias, temperature=1.0, seed=1)
    )
    assert answer.text() == bytes(answer.ids()).decode(errors="replace")
    assert [e.completion_tokens for e in answer.pieces()] == list(range(1, 13))
    assert all(not e.text.endswith("\ufffd") for e in answer.pieces()[:-1])


def test_the_end_token_ends_with_stop_and_has_no_text(served: Served) -> None:
    (answer,) = run(served.engine, request("r", prompt_of(4), logit_bias={END: 100.0}))
    assert (answer.ids(), answer.text(), answer.finish()) == ([END], "", "stop")
    assert answer.pieces()[-1].stop_reason is None


def test_ignore_eos_goes_on_past_it(served: Served) -> None:
    (answer,) = run(
        served.engine, request("r", prompt_of(4), logit_bias={END: 100.0}, ignore_eos=True, max_tokens=5)
    )
    assert (answer.ids(), answer.finish()) == ([END] * 5, "length")


def test_min_tokens_forbids_every_kind_of_end_before_it(served: Served) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "min_tokens": 4}
    (end,) = run(served.engine, request("end", prompt_of(4), logit_bias={END: 100.0}, **options))
    assert len(end.ids()) == 5
    assert end.ids().index(END) == 4
    (token,) = run(
        served.engine,
        request("token", prompt_of(4), logit_bias={65: 100.0}, stop_token_ids=(65,), **options),
    )
    assert len(token.ids()) == 5
    assert token.ids().index(65) == 4
    assert token.pieces()[-1].stop_reason == 65
    (text,) = run(
        served.engine, request("text", prompt_of(4), logit_bias={66: 100.0}, stop=("B",), **options)
    )
    assert (text.ids(), text.text(), text.finish()) == ([66] * 5, "BBBB", "stop")


def test_max_tokens_ends_with_length(served: Served) -> None:
    (answer,) = run(served.engine, request("r", prompt_of(4), max_tokens=1, ignore_eos=True))
    assert (len(answer.ids()), answer.finish()) == (1, "length")


@pytest.mark.parametrize("prompt_logprobs", [None, 2])
def test_max_tokens_zero_only_evaluates_the_prompt(served: Served, prompt_logprobs: int | None) -> None:
    (answer,) = run(
        served.engine, request("r", prompt_of(4), n=2, max_tokens=0, prompt_logprobs=prompt_logprobs)
    )
    assert answer.routed.prompt_tokens == 4
    for index in range(2):
        assert (answer.ids(index), answer.text(index), answer.finish(index)) == ([], "", "length")
    assert idle(served)


# --- log-probabilities ---------------------------------------------------------------------------


def test_logprobs_are_the_log_softmax_of_the_models_own_logits(served: Served) -> None:
    prompt, composition = prompt_of(6), fixed(code=0.9)
    (answer,) = run(
        served.engine,
        request(
            "r", prompt, composition, max_tokens=6, logprobs=3, temperature=0.7, seed=2, frequency_penalty=1.0
        ),
    )
    ids = answer.ids()
    expected = plain_logits(tiny_model(), [*prompt, *ids], served.plain(composition)).log_softmax(-1)
    assert len(answer.logprobs()) == len(ids)
    for i, (token, logprob) in enumerate(zip(ids, answer.logprobs(), strict=True)):
        row = expected[len(prompt) - 1 + i]
        assert logprob.token_id == token
        assert logprob.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert logprob.token_bytes == bytes([token])
        values, best = row.topk(3)
        assert [t.token_id for t in logprob.top] == best.tolist()
        assert [t.logprob for t in logprob.top] == pytest.approx(values.tolist(), abs=1e-4)
    total = sum(p.logprob for p in answer.logprobs())
    assert answer.pieces()[-1].cumulative_logprob == pytest.approx(total, abs=1e-4)


def test_zero_logprobs_report_the_chosen_token_alone(served: Served) -> None:
    (answer,) = run(served.engine, request("r", prompt_of(6), logprobs=0))
    assert [p.top for p in answer.logprobs()] == [()] * len(answer.ids())


@pytest.mark.parametrize("chunk", [2, 64])
def test_prompt_logprobs_are_one_per_prompt_token_with_none_first(tmp_path: Path, chunk: int) -> None:
    served = serve(tmp_path, max_prefill_tokens=chunk)
    prompt, composition = prompt_of(9), fixed(chat=1.0)
    (answer,) = run(served.engine, request("r", prompt, composition, max_tokens=2, prompt_logprobs=1))
    found = answer.routed.prompt_logprobs
    assert found is not None
    assert len(found) == len(prompt)
    assert found[0] is None
    expected = plain_logits(tiny_model(), prompt, served.plain(composition)).log_softmax(-1)
    for i in range(1, len(prompt)):
        one = found[i]
        assert one is not None
        assert one.token_id == prompt[i]
        assert one.logprob == pytest.approx(float(expected[i - 1, prompt[i]]), abs=1e-4)
        assert one.top[0].token_id == int(expected[i - 1].argmax())


# --- penalties -----------------------------------------------------------------------------------


def test_penalties_see_the_prompt_and_the_output_as_their_definitions_say(served: Served) -> None:
    prompt = prompt_of(6)
    (answer,) = run(
        served.engine,
        request("r", prompt, max_tokens=12, repetition_penalty=1.8, presence_penalty=0.6, ignore_eos=True),
    )
    ids: list[int] = []
    model = tiny_model()
    for _ in range(12):
        logits = plain_logits(model, [*prompt, *ids])[-1].tolist()
        for token in {*prompt, *ids}:
            logits[token] *= 1.8 if logits[token] < 0 else 1 / 1.8
        for token in set(ids):
            logits[token] -= 0.6
        ids.append(max(range(VOCAB), key=logits.__getitem__))
    assert answer.ids() == ids


# --- refusals and limits -------------------------------------------------------------------------


def test_what_can_never_run_is_refused_by_name_and_leaves_nothing(served: Served) -> None:
    engine = served.engine
    with pytest.raises(InvalidRequest, match="empty"):
        engine.check(request("r", []))
    with pytest.raises(InvalidRequest, match="token id 259 is out of range"):
        engine.check(request("r", [1, VOCAB]))
    with pytest.raises(InvalidRequest, match="token id -1"):
        engine.check(request("r", [-1]))
    with pytest.raises(
        ContextTooLong, match="500 tokens and max_tokens is 13, together 513; the context is 512"
    ):
        engine.check(request("r", prompt_of(500), max_tokens=13))
    with pytest.raises(InvalidRequest, match="token id 264"):
        engine.check(request("r", [1], logit_bias={VOCAB + 5: 1.0}))
    with pytest.raises(InvalidRequest, match="token id -2"):
        engine.check(request("r", [1], stop_token_ids=(-2,)))
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
