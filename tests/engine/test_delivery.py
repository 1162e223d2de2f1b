"""With a step in the air readers get the same as without; what a late end leaves there is dropped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest, GenerationRequest, TextEvent
from brainstacks.engine.runner.flight import Flight
from brainstacks.engine.scheduler import Row
from brainstacks.errors import EngineFailure
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

STOP_AT = 4


def asynchronous(served: Served) -> StepEngine:
    """Its engine, stepping as on a device that computes while the host goes on."""
    served.engine.backend.asynchronous = True
    return served.engine


def computed(engine: StepEngine, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """All rows that the engine has computed from now on."""
    rows: list[Row] = []
    launch = engine._runner.launch

    def launched(given: Any, bank: Any) -> Flight:
        rows.extend(given)
        return launch(given, bank)

    monkeypatch.setattr(engine._runner, "launch", launched)
    return rows


def stopped(engine: StepEngine) -> tuple[GenerationRequest, Answer]:
    """A request that a stop string ends after `STOP_AT` tokens, and what it gets without that string."""

    def asked(name: str, *stop: str) -> GenerationRequest:
        return request(
            name,
            prompt_of(9),
            fixed(chat=1.0),
            max_tokens=12,
            logprobs=1,
            allowed_token_ids=tuple(b"abcdefghijklm"),  # a character for each token
            stop=stop,
        )

    (free,) = run(engine, asked("plain"))
    return asked("late", free.text()[:STOP_AT]), free


# --- the same as without -------------------------------------------------------------------------


def drawn(number: int) -> GenerationRequest:
    chance = random.Random(number)
    return request(
        f"r{number}",
        prompt_of(chance.randint(2, 50), number),
        chance.choice([fixed(chat=1.0), CompositionRequest("base"), fixed(code=0.5, math=0.9)]),
        n=chance.choice([1, 1, 3]),
        max_tokens=chance.randint(0, 20),
        min_tokens=chance.choice([0, 0, 3]),
        temperature=chance.choice([0.0, 0.9, 1.5]),
        top_p=chance.choice([1.0, 0.8]),
        seed=number,
        logprobs=chance.choice([None, 2]),
        prompt_logprobs=chance.choice([None, None, 1]),
        stop=chance.choice([(), ("a",), ("e", "t", "1"), ("th", " ")]),
        stop_token_ids=chance.choice([(), (70, 80, 90)]),
        ignore_eos=chance.choice([True, False]),
        repetition_penalty=chance.choice([1.0, 1.2]),
    )


def told(answer: Answer, n: int) -> list[Any]:
    """All but how the text was cut into events, and when."""
    assert not answer.errors
    last = [answer.pieces(i)[-1] for i in range(n)]
    ends = [(e.finish_reason, e.stop_reason, e.completion_tokens, e.cumulative_logprob) for e in last]
    texts = [(answer.ids(i), answer.text(i), answer.logprobs(i)) for i in range(n)]
    return [answer.routed.prompt_logprobs, ends, texts]


@pytest.mark.parametrize("limits", [{}, {"kv_cache_tokens": 160}, {"deterministic": True}], ids=str)
def test_answers_are_the_same_with_a_step_in_the_air(tmp_path: Path, limits: dict[str, Any]) -> None:
    """Bit for bit on the cpu backend, where it makes no difference who shares a step."""
    served = serve(tmp_path, max_batch_size=5, max_prefill_tokens=32, backend="cpu", **limits)
    requests = [drawn(number) for number in range(24)]
    before = run(served.engine, *requests)
    after = run(asynchronous(served), *requests)
    for one, plain, late in zip(requests, before, after, strict=True):
        assert told(late, one.n) == told(plain, one.n)
    assert idle(served)


# --- when readers are told -----------------------------------------------------------------------


def test_a_step_tells_of_its_own_tokens_where_it_computes_at_once(served: Served) -> None:
    (answer,) = start(served.engine, request("r", prompt_of(5)))
    for tokens in (1, 2, 3):
        served.engine.step()
        assert len(answer.ids()) == tokens


def test_readers_are_told_of_a_step_while_the_next_is_in_the_air(served: Served) -> None:
    engine = asynchronous(served)
    flying: list[bool] = []
    one = request("r", prompt_of(5), max_tokens=4, ignore_eos=True)
    engine.add(one, lambda event: flying.append(engine._flight is not None))
    finish(engine)
    routed, *pieces, last = flying
    assert not routed
    assert pieces == [True] * 3
    assert not last, "what max_tokens ends is not computed any further"


def test_requests_are_taken_in_while_a_step_is_in_the_air(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = asynchronous(served)
    start(engine, request("running", prompt_of(5), max_tokens=20, ignore_eos=True))
    engine.step()
    flying: list[bool] = []
    compose = engine.composer.compose

    def composed(*args: Any, **kwargs: Any) -> Any:
        flying.append(engine._flight is not None)
        return compose(*args, **kwargs)

    monkeypatch.setattr(engine.composer, "compose", composed)
    start(engine, request("new", prompt_of(6), fixed(math=1.0)))
    engine.step()
    assert flying == [True]
    assert engine.gauges.running == 2


# --- ends that come late -------------------------------------------------------------------------


def test_the_token_after_a_stop_string_is_computed_and_counts_nowhere(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, free = stopped(served.engine)
    engine = asynchronous(served)
    rows = computed(engine, monkeypatch)
    (answer,) = run(engine, late)
    assert [row.start for row in rows] == [0, *range(9, 9 + STOP_AT)], "the prompt, and one token too many"
    last = answer.pieces()[-1]
    assert (last.finish_reason, last.stop_reason) == ("stop", late.sampling.stop[0])
    assert (answer.ids(), answer.logprobs()) == (free.ids()[:STOP_AT], free.logprobs()[:STOP_AT])
    assert last.completion_tokens == STOP_AT
    assert last.cumulative_logprob == free.pieces()[STOP_AT - 1].cumulative_logprob
    assert answer.text() == ""
    assert idle(served)


def test_the_stacks_of_a_late_end_stay_until_the_step_has_landed_and_its_memory_is_free_at_once(
    served: Served,
) -> None:
    late, _ = stopped(served.engine)
    engine = asynchronous(served)
    (answer,) = start(engine, late)
    step_until(engine, lambda: answer.over)
    assert engine.gauges.kv_tokens_used == 0
    assert engine.stacks.in_use("chat")
    assert engine.can_step
    engine.step()
    assert idle(served)
    assert not engine.has_work


def test_an_abort_with_a_step_in_the_air_frees_everything_and_the_name_can_be_used_again(
    served: Served,
) -> None:
    engine, one = asynchronous(served), request("r", prompt_of(20), fixed(chat=1.0), n=2)
    start(engine, one)
    engine.step()
    engine.step()
    engine.abort("r")
    (again,) = run(engine, one)
    assert idle(served)
    engine.backend.asynchronous = False
    (plain,) = run(engine, one)
    assert [again.ids(i) for i in range(2)] == [plain.ids(i) for i in range(2)]


def test_a_step_that_fails_when_it_lands_ends_its_requests_and_nobody_elses(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = asynchronous(served)
    (plain,) = run(engine, request("plain", prompt_of(6), fixed(math=1.0)))
    (hurt,) = start(engine, request("hurt", prompt_of(5), fixed(chat=1.0)))
    engine.step()
    (later,) = start(engine, request("later", prompt_of(6), fixed(math=1.0)))
    with monkeypatch.context() as broken:
        broken.setattr(Flight, "land", lambda flight: 1 / 0)
        engine.step()
    assert [type(error) for error in hurt.errors] == [EngineFailure]
    finish(engine)
    assert later.ids() == plain.ids()
    assert [event for event in hurt.events if isinstance(event, TextEvent)] == []
    assert idle(served)
