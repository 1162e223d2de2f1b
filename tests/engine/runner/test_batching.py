"""Continuous batching changes nothing: every request's tokens are those of plain, unbatched generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brainstacks.engine.request import CompositionRequest
from tests.engine.driving import Answer, Served, finish, fixed, prompt_of, request, run, serve, start
from tests.tiny import END, FAMILIES, WINDOW, plain_greedy, tiny_model

pytestmark = pytest.mark.usefixtures("each_backend")

COMPOSITIONS = [
    CompositionRequest("base"),
    fixed(chat=1.0),
    fixed(code=0.7, math=-0.5),
    CompositionRequest("ungated"),
    fixed(math=1.4),
    fixed(chat=0.3, code=0.9),
]


def assert_plain(
    served: Served, family: str, answer: Answer, prompt: list[int], which: int, count: int
) -> None:
    composition = COMPOSITIONS[which]
    expected = plain_greedy(tiny_model(family), prompt, count, served.plain(composition))
    assert answer.ids() == expected
    assert answer.finish() == ("stop" if expected[-1] == END else "length")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_of_any_family_equals_plain_generation(tmp_path: Path, family: str) -> None:
    """Prompts on both sides of the sliding window, compositions mixed, finishing at different times."""
    served = serve(tmp_path, family, max_prefill_tokens=16)
    cases = [(prompt_of(length), 4 + 3 * i) for i, length in enumerate([1, 5, WINDOW, WINDOW + 1, 20, 33])]
    answers = run(
        served.engine,
        *(
            request(f"r{i}", prompt, COMPOSITIONS[i], max_tokens=count)
            for i, (prompt, count) in enumerate(cases)
        ),
    )
    for i, ((prompt, count), answer) in enumerate(zip(cases, answers, strict=True)):
        assert_plain(served, family, answer, prompt, i, count)


def test_base_requests_equal_transformers_generate(tmp_path: Path) -> None:
    served = serve(tmp_path)
    prompts = [prompt_of(length) for length in (3, 9, 17)]
    answers = run(served.engine, *(request(f"r{i}", p, max_tokens=12) for i, p in enumerate(prompts)))
    model = tiny_model()
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=256
        )
        assert answer.ids() == output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_chunked_prefill_equals_prefill_at_once(tmp_path: Path, chunk: int) -> None:
    served = serve(tmp_path, "gemma3_text", max_prefill_tokens=chunk)
    prompts = [prompt_of(length) for length in (2, 23, 11)]
    answers = run(
        served.engine,
        *(request(f"r{i}", p, COMPOSITIONS[i], max_tokens=6) for i, p in enumerate(prompts)),
    )
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert_plain(served, "gemma3_text", answer, prompt, i, 6)


def test_requests_that_join_leave_and_are_aborted_mid_way_disturb_no_other(tmp_path: Path) -> None:
    """Slots move: those in front finish and are aborted first, so later ones are copied into their place."""
    served = serve(tmp_path, "mistral", max_prefill_tokens=24, max_batch_size=4)
    engine = served.engine
    counts = [2, 30, 9, 21, 5, 16, 12]
    prompts = [prompt_of(4 + 5 * i) for i in range(len(counts))]
    requests = [
        request(f"r{i}", p, COMPOSITIONS[i % 6], max_tokens=n)
        for i, (p, n) in enumerate(zip(prompts, counts, strict=True))
    ]
    answers = start(engine, *requests[:3])
    aborted = start(engine, request("gone", prompt_of(12), COMPOSITIONS[1], max_tokens=200))
    for _ in range(3):
        engine.step()
    answers += start(engine, *requests[3:5])
    for _ in range(2):
        engine.step()
    engine.abort("gone")
    answers += start(engine, *requests[5:])
    finish(engine)
    assert not aborted[0].over
    assert 0 < len(aborted[0].ids()) < 200
    for i, answer in enumerate(answers):
        assert_plain(served, "mistral", answer, prompts[i], i % 6, counts[i])


@pytest.mark.parametrize("position", range(4))
def test_whichever_slot_finishes_first_the_others_go_on_unchanged(tmp_path: Path, position: int) -> None:
    served = serve(tmp_path)
    prompts = [prompt_of(6 + i) for i in range(4)]
    counts = [2 if i == position else 14 for i in range(4)]
    answers = run(
        served.engine,
        *(
            request(f"r{i}", p, COMPOSITIONS[i], max_tokens=n)
            for i, (p, n) in enumerate(zip(prompts, counts, strict=True))
        ),
    )
    for i, answer in enumerate(answers):
        assert_plain(served, "llama", answer, prompts[i], i, counts[i])


def test_text_longer_than_the_cache_at_first_grows_it_without_a_seam(tmp_path: Path) -> None:
    served = serve(tmp_path)
    prompts = [prompt_of(250), prompt_of(3)]
    answers = run(
        served.engine,
        request("long", prompts[0], COMPOSITIONS[1], max_tokens=12, ignore_eos=True),
        request("short", prompts[1], COMPOSITIONS[2], max_tokens=12, ignore_eos=True),
    )
    for i, answer in enumerate(answers):
        plain = plain_greedy(tiny_model(), prompts[i], 12, served.plain(COMPOSITIONS[1 + i]), ends=())
        assert answer.ids() == plain


def test_a_router_pass_between_steps_disturbs_no_running_request(tmp_path: Path) -> None:
    served = serve(tmp_path, router=True)
    prompt = prompt_of(9)
    (running,) = start(served.engine, request("running", prompt, COMPOSITIONS[1], max_tokens=12))
    for i in range(4):
        served.engine.step()
        start(served.engine, request(f"routed-{i}", prompt_of(5 + i), CompositionRequest("routed")))
    finish(served.engine)
    assert_plain(served, "llama", running, prompt, 1, 12)
