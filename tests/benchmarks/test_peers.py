"""Peers run what their names say, on the same prompts as the engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import peers
from benchmarks.engine_batch import engine_batch
from benchmarks.timing import timed
from benchmarks.traffic import random_prompt
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from tests.tiny import VOCAB

PROMPTS = [random_prompt(VOCAB, 7, seed) for seed in range(4)]


def test_generate_gives_the_tokens_of_the_engines_base(tiny_directory: Path, tiny_base: BaseModel) -> None:
    plain = load_base(tiny_directory, quantization="none", device="cpu")
    theirs = timed(peers.transformers_batch(plain.model, PROMPTS, plain.device), 6)
    ours = timed(engine_batch(StepEngine(tiny_base, None, EngineConfig()), PROMPTS, [{}] * 4), 6)
    assert ours.tokens == theirs.tokens
    assert theirs.decoded == 4 * 5


def test_peft_sums_adapters_or_gives_each_row_its_own(tiny_base: BaseModel) -> None:
    pytest.importorskip("peft")
    peer = peers.PeftPeer(tiny_base, adapters=2, rank=4)
    one = timed(peer.summed(PROMPTS, 1), 6).tokens
    both = timed(peer.summed(PROMPTS, 2), 6).tokens
    mixed = timed(peer.mixed(PROMPTS), 6).tokens
    assert timed(peer.summed(PROMPTS, 1), 6).tokens == one, "a run sets its own adapters"
    assert one != both
    assert mixed[0::2] == one[0::2], "even rows have the first adapter alone"
    assert mixed[1::2] != one[1::2]


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """In the place of llama-cpp-python: counts on from the prompt's last id."""
    calls: list[object] = []

    class Llama:
        def __init__(self, *, model_path: str, n_ctx: int, n_threads: int, verbose: bool) -> None:
            calls.append(model_path)

        def generate(self, tokens: list[int], *, temp: float) -> Iterator[int]:
            calls.append((tokens, temp))
            token = tokens[-1]
            while True:
                token += 1
                yield token

    module = ModuleType("llama_cpp")
    module.__spec__ = ModuleSpec("llama_cpp", None)
    setattr(module, "Llama", Llama)  # noqa: B010 -- not on ModuleType
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    return calls


def test_llama_cpp_generates_greedily_from_the_same_ids(llama_cpp: list[object]) -> None:
    assert peers.installed("llama_cpp")
    run = timed(peers.llama_cpp_stream(Path("model.gguf"), (5, 6, 7)), 4)
    assert run.tokens == ((8, 9, 10, 11),)
    assert llama_cpp == ["model.gguf", ([5, 6, 7], 0.0)]


def test_a_base_without_a_gguf_file_has_none() -> None:
    assert peers.gguf_of("some/hub-id") is None
    assert peers.gguf_of("folder/model.gguf") == Path("folder/model.gguf")
    packaged = peers.gguf_of("packaged:smollm2-135m-instruct")
    assert packaged is None or packaged.suffix == ".gguf"
