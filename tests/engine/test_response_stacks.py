"""Stacks that apply to the response alone: the prompt's keys and values are the base's, for everybody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brainstacks.engine.attribution import variants
from brainstacks.engine.block_manager import BLOCK_TOKENS
from brainstacks.engine.request import CompositionRequest, GenerationRequest
from tests.engine.driving import Served, finish, fixed, prompt_of, request, run, serve, start
from tests.engine.test_properties import assert_plain
from tests.tiny import plain_logits, tiny_model

pytestmark = pytest.mark.usefixtures("each_backend")

ALL = ("chat", "code", "math")


def reused(served: Served, one: GenerationRequest) -> int:
    """Tokens of the prefix cache that `one` takes; its answer is checked too."""
    before = served.engine.gauges.prompt_tokens_reused
    (answer,) = run(served.engine, one)
    assert_plain(served, "llama", one, answer)
    return served.engine.gauges.prompt_tokens_reused - before


def test_every_composition_shares_the_prompt(tmp_path: Path) -> None:
    served = serve(tmp_path, late=ALL)
    prompt = prompt_of(4 * BLOCK_TOKENS + 3)
    assert reused(served, request("a", prompt, fixed(math=1.0))) == 0
    for at, composition in enumerate(
        (fixed(chat=0.5), CompositionRequest("ungated"), CompositionRequest("base"))
    ):
        assert reused(served, request(f"b{at}", prompt, composition)) == 4 * BLOCK_TOKENS


def test_the_routers_pass_is_the_prefill(tmp_path: Path) -> None:
    served = serve(tmp_path, late=ALL, router=True)
    one = request("a", prompt_of(4 * BLOCK_TOKENS + 3), CompositionRequest("routed"))
    (answer,) = run(served.engine, one)
    assert answer.routed.routing.active
    assert served.engine.gauges.prompt_tokens_reused == 4 * BLOCK_TOKENS


def test_beside_a_stack_that_acts_everywhere_the_prompt_is_of_that_one_alone(tmp_path: Path) -> None:
    served = serve(tmp_path, late=("math",))
    prompt = prompt_of(3 * BLOCK_TOKENS + 1)
    assert reused(served, request("a", prompt, fixed(chat=0.5))) == 0
    assert reused(served, request("b", prompt, fixed(chat=0.5, math=1.0))) == 3 * BLOCK_TOKENS
    assert reused(served, request("c", prompt, fixed(chat=0.6, math=1.0))) == 0
    assert reused(served, request("d", prompt, fixed(math=1.0))) == 0


def test_a_conversation_that_changes_its_composition_keeps_its_prompts_and_computes_answers_anew(
    tmp_path: Path,
) -> None:
    """What is said to a prompt depends on it and the composition alone, not on what the cache holds."""
    served = serve(tmp_path, late=ALL)
    first = request("a", prompt_of(2 * BLOCK_TOKENS), fixed(math=1.0), max_tokens=20, ignore_eos=True)
    (answer,) = run(served.engine, first)
    conversation = [*first.prompt_ids, *answer.ids(), *prompt_of(5, seed=1)]
    # The first answer begins a block: those of the prompt are shared, those of the answer are the response's.
    assert reused(served, request("b", conversation, fixed(chat=1.0))) == BLOCK_TOKENS
    assert reused(served, request("c", conversation, fixed(code=1.0))) == 3 * BLOCK_TOKENS


@pytest.mark.parametrize("prompt", [1, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1])
def test_what_is_computed_again_is_as_it_was(tmp_path: Path, prompt: int) -> None:
    """A completion that gave up its blocks finds those of its response, and nobody else does."""
    served = serve(tmp_path, late=ALL, kv_cache_tokens=96, max_batch_size=3)
    asked = [
        request(f"r{i}", prompt_of(prompt), composition, max_tokens=60, ignore_eos=True)
        for i, composition in enumerate((fixed(math=1.0), fixed(chat=0.7), fixed(chat=0.8)))
    ]
    answers = run(served.engine, *asked)
    assert served.engine._scheduler.preemptions > 0
    for one, answer in zip(asked, answers, strict=True):
        assert_plain(served, "llama", one, answer)


def test_a_prompt_that_holds_the_beginning_of_a_response_says_where_it_begins(tmp_path: Path) -> None:
    served = serve(tmp_path, late=ALL)
    one = replace(request("a", prompt_of(30), fixed(math=1.0), prompt_logprobs=0), response_start=21)
    (answer,) = start(served.engine, one)
    finish(served.engine)
    plain = plain_logits(tiny_model(), one.prompt_ids, served.plain(one.composition, 21)).log_softmax(-1)
    told = [logprob.logprob for logprob in (answer.routed.prompt_logprobs or ())[1:] if logprob is not None]
    rows = torch.arange(29)
    assert told == pytest.approx(plain[rows, list(one.prompt_ids[1:])].tolist(), abs=2e-4)


def test_attribution_scores_an_answer_as_it_is_generated(tmp_path: Path) -> None:
    served = serve(tmp_path, late=ALL)
    prompt, composition = prompt_of(20), fixed(math=1.0)
    (answer,) = run(served.engine, request("a", prompt, composition, logprobs=0))
    generated = [logprob.logprob for logprob in answer.logprobs()]
    scored = run(served.engine, *variants("b", prompt, answer.ids(), {"math": 1.0}))[1]
    told = [one.logprob for one in (scored.routed.prompt_logprobs or ())[20:] if one is not None]
    assert told == pytest.approx(generated, abs=2e-4)
