"""A peer that cannot take part is left out with a word, and a base's GGUF file is found by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.peers import available


@pytest.mark.parametrize(
    ("base", "device", "package", "reason"),
    [
        ("some/hub-id", "cpu", True, "the base is no GGUF file"),
        ("model.gguf", "cuda", True, "the base on cuda"),
        ("model.gguf", "cpu", False, "is not installed"),
    ],
)
def test_llama_cpp_is_left_out_with_a_word(
    base: str,
    device: str,
    package: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(available, "installed", lambda name: package)
    assert available.llama_cpp_file(base, torch.device(device)) is None
    assert reason in capsys.readouterr().out
    monkeypatch.setattr(available, "installed", lambda name: True)
    assert available.llama_cpp_file("model.gguf", torch.device("cpu")) == Path("model.gguf")


def test_a_base_without_a_gguf_file_has_none() -> None:
    assert available.gguf_of("some/hub-id") is None
    assert available.gguf_of("folder/model.gguf") == Path("folder/model.gguf")
    packaged = available.gguf_of("packaged:smollm2-135m-instruct")
    assert packaged is None or packaged.suffix == ".gguf"
