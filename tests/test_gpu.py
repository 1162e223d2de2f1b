"""The engine on a GPU: graphs change no bit, and loads disturb neither steps nor what is served."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.engine.request import CompositionRequest, GenerationRequest
from tests.engine.driving import Answer, Served, fixed, prompt_of, request, run, serve, start, step_until
from tests.tiny import FAMILIES, plain_greedy, publish_stack, random_stack, stack_config, tiny_model

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
COMPOSITIONS = [
    CompositionRequest("base"),
    CompositionRequest("ungated"),
    fixed(chat=1.0),
    fixed(code=-0.7, math=0.4),
    fixed(math=1.5),
]


def served_there(directory: Path, family: str = "llama", **limits: Any) -> Served:
    """Without reuse of prefixes, which lets the same requests meet other shapes the second time."""
    most = {
        "prefix_caching": False,
        "max_batch_size": 8,
        "kv_cache_tokens": 2048,
        "device_stack_bytes": 64 << 20,
    }
    return serve(directory, family, device=DEVICE, backend="cuda", **most | limits)


def requests(**sampling: Any) -> list[GenerationRequest]:
    return [
        request(f"r{at}", prompt_of(5 + 9 * at), composition, max_tokens=12, ignore_eos=True, **sampling)
        for at, composition in enumerate(COMPOSITIONS)
    ]


def numbers(answers: list[Answer]) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities."""
    return [(answer.ids(), [one.logprob for one in answer.logprobs()]) for answer in answers]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_mixed_compositions_are_those_of_plain_generation(tmp_path: Path, family: str) -> None:
    served = served_there(tmp_path, family)
    asked = requests()
    for one, answer in zip(asked, run(served.engine, *asked), strict=True):
        stacks = served.plain(one.composition)
        assert answer.ids() == plain_greedy(tiny_model(family), one.prompt_ids, 12, stacks, ends=())


def test_graphs_change_no_bit(tmp_path: Path) -> None:
    with_graphs = run(served_there(tmp_path / "on").engine, *requests(logprobs=0))
    without = run(served_there(tmp_path / "off", cuda_graphs=False).engine, *requests(logprobs=0))
    assert numbers(with_graphs) == numbers(without)


def test_deterministic_rows_have_the_same_bits_alone_and_among_others(tmp_path: Path) -> None:
    engine = served_there(tmp_path, deterministic=True).engine
    together = numbers(run(engine, *requests(logprobs=0)))
    assert together == [numbers(run(engine, one))[0] for one in requests(logprobs=0)]


def test_a_stack_that_is_loaded_while_rows_decode_changes_none_of_them_and_computes(tmp_path: Path) -> None:
    served = served_there(tmp_path)
    engine, asked = served.engine, requests(logprobs=0)
    before = numbers(run(engine, *asked))
    law = random_stack(served.base.identity.dims, 9, config=stack_config(rank=16))
    publish_stack(served.registry, served.base.identity, "law", law, tmp_path)
    answers = start(engine, *asked)
    step_until(engine, lambda: any(len(answer.pieces()) > 2 for answer in answers))
    loading = threading.Thread(target=engine.serving.sync)
    loading.start()
    step_until(engine, lambda: all(answer.over for answer in answers))
    loading.join()
    assert numbers(answers) == before
    (new,) = run(engine, request("new", prompt_of(7), fixed(law=1.0), ignore_eos=True))
    assert new.ids() == plain_greedy(tiny_model(), prompt_of(7), 8, [(law, 1.0)], ends=())


def test_a_load_that_finds_no_memory_leaves_what_was_served_served(tmp_path: Path) -> None:
    served = served_there(tmp_path, deterministic=True)  # stacks that made room come back at their own time
    engine = served.engine
    before = numbers(run(engine, *requests(logprobs=0)))
    large = random_stack(served.base.identity.dims, 9, config=stack_config(rank=512, experts=8))
    publish_stack(served.registry, served.base.identity, "large", large, tmp_path)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)  # what is held stays; nothing comes to it
    try:
        engine.serving.sync()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "large" not in engine.stacks.serving
    assert any("large" in problem for problem in engine.serving.stack_problems)
    assert numbers(run(engine, *requests(logprobs=0))) == before
