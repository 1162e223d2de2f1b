"""llama.cpp runs in its own process, times itself, and is refused where its figures would not compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.instruments.timing import timed
from benchmarks.peers import available
from benchmarks.peers.gguf_lora import write_random_loras
from benchmarks.peers.llama_cpp import PACKAGE, LlamaCpp, Settings, context_for
from benchmarks.serving.traffic import random_prompts
from brainstacks.base_model import identify_base
from tests.benchmarks.fake_llama_cpp import xllamacpp

PROMPTS = [(4, 5, 6, 7), (7, 8, 9, 10)]
PACKAGED = "packaged:smollm2-135m-instruct"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(xllamacpp.__file__).parent))


def settings(slots: int = 2, adapters: tuple[str, ...] = ()) -> Settings:
    return Settings("model.gguf", threads=2, slots=slots, context=256, adapters=adapters)


@pytest.mark.usefixtures("fake")
def test_its_own_times_make_the_rate_and_scales_reach_the_adapters() -> None:
    with LlamaCpp(settings(adapters=("a.gguf", "b.gguf"))) as server:
        assert server.system == "FAKE = 1"
        run = timed(server.contestant(PROMPTS), 6)
        assert (run.first_token_s, run.decoded, run.tokens) == (0.008, 10, ())
        assert run.rate == 200.0
        assert timed(server.contestant(PROMPTS, (0.75, 0.25)), 6).rate == 100.0


@pytest.mark.usefixtures("fake")
def test_what_it_refuses_or_reuses_is_an_error() -> None:
    with LlamaCpp(settings()) as server:
        with pytest.raises(RuntimeError, match="another number of prompts than slots"):
            server.contestant(PROMPTS[:1]).run(4)
        with pytest.raises(RuntimeError, match=r"read and generated \(3, 4\) and not \(4, 4\)"):
            server.contestant([(xllamacpp.REUSED, 5, 6, 7)] * 2).run(4)
        assert server.contestant(PROMPTS).run(4).decoded == 6, "it goes on after a refusal"


@pytest.mark.usefixtures("fake")
def test_a_process_that_does_not_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="its process ended; see its messages above"):
        LlamaCpp(settings(adapters=("a.txt",)))
    assert "a.txt is no adapter" in capfd.readouterr().err


@pytest.mark.parametrize(("prompt", "tokens", "context"), [(32, 32, 256), (224, 32, 256), (250, 32, 512)])
def test_the_context_holds_prompt_and_answer(prompt: int, tokens: int, context: int) -> None:
    assert context_for(prompt, tokens) == context


@pytest.mark.slow
@pytest.mark.skipif(not available.installed(PACKAGE), reason="needs xllamacpp")
def test_the_package_takes_the_base_and_its_adapters(tmp_path: Path) -> None:
    gguf = available.gguf_of(PACKAGED)
    files = write_random_loras(tmp_path, identify_base(PACKAGED), 2)
    prompts = random_prompts(49152, 8, 2, seed=0)
    with LlamaCpp(Settings(str(gguf), 1, 2, 256, tuple(map(str, files)))) as server:
        assert "AVX2" in server.system or "NEON" in server.system
        for scales in ((), (1.0, 0.5)):
            run = timed(server.contestant(prompts, scales), 3)
            assert run.decoded == 4
            assert run.rate > 0
