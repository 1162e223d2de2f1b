"""What a completion is: its seed, where it ends, its log-probabilities and penalties."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brainstacks.engine.request import TextEvent
from tests.engine.driving import Answer, Served, finish, fixed, idle, prompt_of, request, run, serve
from tests.tiny import END, VOCAB, plain_logits, tiny_model

pytestmark = pytest.mark.usefixtures("each_backend")

ASCII = {token: -100.0 for token in range(VOCAB) if not 32 <= token < 127}
"""A bias that leaves printable ASCII: the text of a random model is then text."""


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


def test_only_allowed_tokens_come_and_special_ones_are_text_where_that_is_asked_for(served: Served) -> None:
    options: dict[str, Any] = {
        "max_tokens": 12,
        "ignore_eos": True,
        "allowed_token_ids": (END, 65, 66),
        "temperature": 1.0,
    }
    shown, hidden = run(
        served.engine,
        request("shown", prompt_of(4), skip_special_tokens=False, seed=2, **options),
        request("hidden", prompt_of(4), seed=2, **options),
    )
    assert shown.ids() == hidden.ids()
    names = {END: "<|im_end|>", 65: "A", 66: "B"}
    assert set(shown.ids()) == set(names)
    assert shown.text() == "".join(names[i] for i in shown.ids())
    assert hidden.text() == shown.text().replace("<|im_end|>", "")


def test_a_lower_priority_waits_less(tmp_path: Path) -> None:
    served = serve(tmp_path, max_batch_size=1, max_router_batch=1)
    answers = [Answer() for _ in range(4)]
    ended: list[str] = []
    for answer, (name, priority) in zip(answers, [("a", 0), ("b", 2), ("c", 1), ("d", 2)], strict=True):
        one = replace(request(name, prompt_of(3), max_tokens=3), priority=priority)

        def sink(reply: Any, name: str = name, answer: Answer = answer) -> None:
            answer.events.append(reply)
            if isinstance(reply, TextEvent) and reply.finish_reason is not None:
                ended.append(name)

        served.engine.add(one, sink)
    finish(served.engine)
    assert ended == ["a", "c", "b", "d"]
