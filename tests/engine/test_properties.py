"""Whatever comes, is aborted, paused, preempted: tokens are those of plain generation, memory comes back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brainstacks.engine.request import CompositionRequest, GenerationRequest
from tests.engine.driving import Answer, Served, finish, fixed, idle, prompt_of, request, run, serve, start
from tests.tiny import END, plain_greedy, plain_logits, publish_stack, random_stack, tiny_model

pytestmark = pytest.mark.usefixtures("each_backend")

COMPOSITIONS = [
    CompositionRequest("base"),
    fixed(chat=1.0),
    fixed(chat=0.9),
    fixed(code=0.7, math=-0.5),
    CompositionRequest("ungated"),
]
LIMITS: list[dict[str, Any]] = [
    {"kv_cache_tokens": 112, "max_batch_size": 4, "max_prefill_tokens": 24},
    {"kv_cache_tokens": 112, "max_batch_size": 6, "max_prefill_tokens": 7, "prefix_caching": False},
    {"kv_cache_tokens": 640, "max_batch_size": 3, "max_prefill_tokens": 64},
    {"kv_cache_tokens": 208, "max_batch_size": 4, "max_prefill_tokens": 16, "deterministic": True},
]


def draw(rng: random.Random, name: str, longest: int) -> GenerationRequest:
    """A prompt that often begins as another does, with few compositions, so that prefixes meet."""
    prompt = prompt_of(40, seed=rng.randrange(3))[: rng.randint(1, 40)]
    prompt += prompt_of(8, seed=rng.randrange(100))[: rng.randint(0, 8)]
    one = request(
        name,
        prompt,
        rng.choice(COMPOSITIONS),
        n=rng.choice([1, 1, 1, 2, 3]),
        max_tokens=rng.randint(1, longest),
        prompt_logprobs=rng.choice([None, None, None, 0]),
    )
    return replace(one, response_start=rng.choice([None, None, 1, rng.randint(1, len(prompt))]))


def assert_plain(served: Served, family: str, one: GenerationRequest, answer: Answer) -> None:
    """Each token is the most likely one after those before it: `plain_greedy`, checked in one forward."""
    ids = answer.ids()
    plain = served.plain(one.composition, one.response_start or len(one.prompt_ids))
    logits = plain_logits(tiny_model(family), [*one.prompt_ids, *ids], plain)
    assert not answer.errors
    assert ids == logits[len(one.prompt_ids) - 1 : -1].argmax(-1).tolist()
    assert len(ids) == one.sampling.max_tokens or ids[-1] == END
    assert END not in ids[:-1]
    for index in range(one.n):
        assert answer.ids(index) == ids
        assert answer.finish(index) is not None
    logprobs = answer.routed.prompt_logprobs
    if one.sampling.prompt_logprobs is None:
        assert logprobs is None
    else:
        assert logprobs is not None
        told = [p for p in logprobs[1:] if p is not None]
        assert [p.token_id for p in told] == list(one.prompt_ids[1:])
        expected = logits[range(len(told)), list(one.prompt_ids[1:])] - logits[: len(told)].logsumexp(-1)
        assert [p.logprob for p in told] == pytest.approx(expected.tolist(), abs=2e-4)


@pytest.mark.parametrize("limits", range(len(LIMITS)))
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_random_traffic_equals_plain_generation(tmp_path: Path, family: str, limits: int) -> None:
    assert_traffic_is_plain(tmp_path, family, limits, steps=50, longest=48)


@pytest.mark.parametrize("limits", range(len(LIMITS)))
def test_stacks_that_apply_to_the_response_alone_share_batches_with_others(
    tmp_path: Path, limits: int
) -> None:
    assert_traffic_is_plain(tmp_path, "llama", limits, steps=50, longest=48, late=("chat", "math"))


def assert_traffic_is_plain(
    tmp_path: Path, family: str, limits: int, steps: int, longest: int, late: Sequence[str] = ()
) -> None:
    """Random requests, aborts and pauses for so many steps, then none until all is over."""
    rng = random.Random(f"{family} {limits}")
    served = serve(tmp_path, family, late=late, **LIMITS[limits])
    engine = served.engine
    requests: dict[str, GenerationRequest] = {}
    answers: dict[str, Answer] = {}
    aborted: set[str] = set()
    paused: set[str] = set()
    for step in range(steps):
        if rng.random() < 0.35:
            one = draw(rng, f"r{step}", longest)
            requests[one.request_id] = one
            (answers[one.request_id],) = start(engine, one)
        open_now = [name for name in requests if not answers[name].over and name not in aborted]
        if open_now and rng.random() < 0.06:
            aborted.add(rng.choice(open_now))
            engine.abort(max(aborted & set(open_now)))
        if open_now and rng.random() < 0.15:
            paused.add(rng.choice(open_now))
            engine.pause(max(paused))
        if paused and rng.random() < 0.3:
            engine.resume(paused.pop())
        engine.step()
        assert engine.gauges.kv_tokens_used <= LIMITS[limits]["kv_cache_tokens"]
        assert engine.gauges.running <= LIMITS[limits]["max_batch_size"]
    for name in requests:
        engine.resume(name)
    finish(engine)
    assert idle(served)
    for name in sorted(set(requests) - aborted):
        assert_plain(served, family, requests[name], answers[name])


def test_memory_for_one_long_sequence_serves_many_by_preemption(tmp_path: Path) -> None:
    served = serve(tmp_path, kv_cache_tokens=96, max_batch_size=4)
    requests = [
        request(f"r{i}", prompt_of(20 + i), COMPOSITIONS[i], max_tokens=60, ignore_eos=True, n=1 + i % 2)
        for i in range(4)
    ]
    answers = run(served.engine, *requests)
    assert served.engine._scheduler.preemptions > 0
    for one, answer in zip(requests, answers, strict=True):
        expected = plain_greedy(tiny_model(), one.prompt_ids, 60, served.plain(one.composition), ends=())
        assert [answer.ids(i) for i in range(one.n)] == [expected] * one.n
        assert [p.completion_tokens for p in answer.pieces(0)] == list(range(1, 61)), "nothing is sent twice"
    assert idle(served)


def test_preemption_does_not_change_what_is_drawn(tmp_path: Path) -> None:
    def drawn(name: str, tokens: int) -> list[list[int]]:
        served = serve(tmp_path / name, kv_cache_tokens=tokens, max_batch_size=3)
        requests = [
            request(f"r{i}", prompt_of(20), max_tokens=50, temperature=1.0, seed=i, ignore_eos=True)
            for i in range(3)
        ]
        answers = run(served.engine, *requests)
        assert (served.engine._scheduler.preemptions > 0) == (name == "tight")
        return [answer.ids() for answer in answers]

    assert drawn("tight", 96) == drawn("ample", 960)


def test_equal_requests_get_their_first_tokens_in_the_order_of_arrival(tmp_path: Path) -> None:
    """Base-only or composed, routed or not: nobody overtakes."""
    served = serve(tmp_path, max_batch_size=3, max_prefill_tokens=16, router=True, kv_cache_tokens=256)
    compositions = [*COMPOSITIONS, CompositionRequest("routed")]
    order: list[int] = []
    answers = []
    for i in range(18):
        answer = Answer()
        answers.append(answer)

        def sink(event: object, i: int = i, answer: Answer = answer) -> None:
            answer.events.append(event)  # type: ignore[arg-type]
            if answer.pieces() and i not in order:
                order.append(i)

        served.engine.add(request(f"r{i}", prompt_of(30, seed=i), compositions[i % 6], ignore_eos=True), sink)
        if i % 2:
            served.engine.step()
    finish(served.engine)
    assert order == list(range(18))


# --- prefixes ------------------------------------------------------------------------------------


def test_a_conversation_that_keeps_its_composition_computes_only_what_is_new(tmp_path: Path) -> None:
    served = serve(tmp_path)
    composition = fixed(chat=1.0, math=0.5)
    conversation, known = prompt_of(50), 0
    for turn in range(3):
        before = served.engine.gauges.prompt_tokens_reused
        one = request(f"turn-{turn}", conversation, composition, max_tokens=20, ignore_eos=True)
        (answer,) = run(served.engine, one)
        expected = plain_greedy(tiny_model(), conversation, 20, served.plain(composition), ends=())
        assert answer.ids() == expected
        # All but the last token of the turn before are in the cache, in whole blocks.
        assert served.engine.gauges.prompt_tokens_reused - before == known // 16 * 16
        known = len(conversation) + 19
        conversation += [*answer.ids(), *prompt_of(7, seed=turn)]


def test_a_prefix_is_not_reused_after_its_stack_was_replaced(tmp_path: Path) -> None:
    served = serve(tmp_path)
    prompt = prompt_of(50)
    run(served.engine, request("before", prompt, fixed(chat=1.0)))
    replaced = random_stack(served.base.identity.dims, 77)
    publish_stack(served.registry, served.base.identity, "chat", replaced, tmp_path)
    served.engine.serving.sync()
    (answer,) = run(served.engine, request("after", prompt, fixed(chat=1.0)))
    assert answer.ids() == plain_greedy(tiny_model(), prompt, 8, [(replaced, 1.0)])
    assert served.engine._blocks.reused_tokens == 0
    assert served.engine.gauges.kv_tokens_used == 0


@pytest.mark.parametrize("prompt_logprobs", [None, 0])
def test_the_prompt_of_n_completions_is_computed_once(tmp_path: Path, prompt_logprobs: int | None) -> None:
    served = serve(tmp_path, prefix_caching=False)
    computed = 0
    plain_launch = served.engine._runner.launch

    def counted(rows, bank):  # type: ignore[no-untyped-def]
        nonlocal computed
        computed += sum(row.count for row in rows if not row.completion.decodes)
        return plain_launch(rows, bank)

    served.engine._runner.launch = counted  # type: ignore[method-assign]
    (answer,) = run(
        served.engine, request("r", prompt_of(40), fixed(code=1.0), n=4, prompt_logprobs=prompt_logprobs)
    )
    assert computed == 40
    expected = plain_greedy(tiny_model(), prompt_of(40), 8, served.plain(fixed(code=1.0)))
    assert [answer.ids(i) for i in range(4)] == [expected] * 4
