"""A GGUF base starts from its cache with the very bits of the first start, which are bitsandbytes' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.base_files import locate, quiet_transformers
from brainstacks.base_model import identify_base, load_base, load_chat_tokenizer
from brainstacks.checkpoint import plain_checkpoint
from brainstacks.errors import UnsupportedModel
from brainstacks.pretrained import load_model
from tests.tiny_gguf import TOKENS, save_gguf

PACKAGED = "packaged:smollm2-135m-instruct"
BLOCKED: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
"""Rows of whole NF4 blocks."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "brainstacks" / "bases"


def state(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def quantised_anew(base: Path | str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As every start did without a cache: bitsandbytes' own quantisation of the converted checkpoint."""
    operator = torch.ops.bitsandbytes.quantize_4bit
    own, asked = operator.default, []

    def reference(*values: Any) -> Any:
        asked.append(values)
        return own._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *values)

    directory = plain_checkpoint(locate(base)).directory
    with quiet_transformers(), monkeypatch.context() as patched:
        patched.setattr(operator, "default", reference)
        model = load_model(directory, "nf4", torch.device("cpu"), dtype)
    assert asked
    return model


def same(first: Any, second: Any) -> None:
    expected, found = state(first), state(second)
    assert set(expected) == set(found)
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype, name
        assert torch.equal(tensor, found[name]), name
    assert first.generation_config.to_dict() == second.generation_config.to_dict()
    assert type(first) is type(second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_the_first_and_every_later_start_has_the_bits_of_bitsandbytes(
    tmp_path: Path, cache: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_gguf(tmp_path / "base.gguf", **BLOCKED)
    first = load_base(path, device="cpu", dtype=dtype)
    entries = sorted(entry.name for entry in cache.iterdir())
    later = load_base(path, device="cpu", dtype=dtype)
    exact = quantised_anew(path, dtype, monkeypatch)
    same(first.model, exact)
    same(later.model, exact)
    assert sorted(entry.name for entry in cache.iterdir()) == entries
    assert first.identity == later.identity == identify_base(path)
    assert first.dtype == later.dtype == dtype
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(later.model(ids).logits, first.model(ids).logits)


def test_the_fingerprint_is_that_of_the_converted_checkpoint_whatever_was_cached(
    tmp_path: Path, cache: Path
) -> None:
    path = save_gguf(tmp_path / "base.gguf", **BLOCKED)
    converted = plain_checkpoint(locate(path))
    expected = identify_base(converted.directory).fingerprint
    assert converted.fingerprint == expected
    for options in ({"quantization": "nf4"}, {"quantization": "int8"}, {"quantization": "none"}):
        assert load_base(path, device="cpu", **options).identity.fingerprint == expected  # type: ignore[arg-type]
    assert load_base(path, device="cpu", dtype=torch.float16).identity.fingerprint == expected


def test_tokenizer_and_ends_of_text_come_from_the_file(tmp_path: Path, cache: Path) -> None:
    path = save_gguf(tmp_path / "base.gguf", **BLOCKED)
    for _ in range(2):
        base, alone = load_base(path, device="cpu"), load_chat_tokenizer(path)
        assert base.eos_token_ids == alone.eos_token_ids == (TOKENS.index("<|im_end|>"),)
        for tokenizer in (base.chat_tokenizer(), alone):
            assert tokenizer.encode("he") == [TOKENS.index("he")]
            assert tokenizer.encode_chat([{"role": "user", "content": "he"}])[0] == TOKENS.index(
                "<|im_start|>"
            )


def test_a_damaged_checkpoint_is_not_served(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_gguf(tmp_path / "base.gguf", **BLOCKED)
    first = load_base(path, device="cpu")
    for weights in cache.glob("*/files/model.safetensors"):
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    same(load_base(path, device="cpu").model, first.model)
    assert "base.gguf in NF4 is damaged in the cache" in caplog.text
    assert "the converted checkpoint of base.gguf is damaged in the cache" in caplog.text


def test_another_file_of_the_same_name_is_another_base(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "base.gguf"
    first = load_base(save_gguf(path, **BLOCKED), device="cpu")
    second = load_base(save_gguf(path, seed=1, **BLOCKED), device="cpu")
    assert first.identity.fingerprint != second.identity.fingerprint


def test_a_start_without_a_cache_gives_the_same_base(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_gguf(tmp_path / "base.gguf", **BLOCKED)
    first = load_base(path, device="cpu")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    without = load_base(path, device="cpu")
    same(without.model, first.model)
    assert without.identity == first.identity
    assert (tmp_path / "file").is_file(), "nothing could be kept"


def test_a_damaged_gguf_file_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    path = save_gguf(tmp_path / "base.gguf", **BLOCKED)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnsupportedModel, match=r"base\.gguf cannot be read as a GGUF file"):
        load_base(path, device="cpu")


@pytest.mark.slow
def test_the_packaged_base_has_the_bits_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(PACKAGED, quantization="nf4", device="cpu")
    exact = quantised_anew(PACKAGED, torch.bfloat16, monkeypatch)
    same(base.model, exact)
    assert base.identity.fingerprint == "7949630472879d0e1d041359876a1fd9fa176632b484377d083f390b41b3d864"
