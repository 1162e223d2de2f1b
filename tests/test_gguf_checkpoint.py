"""A GGUF file becomes the very checkpoint that transformers makes of it; its blocks are its linears'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from brainstacks.base_files import locate, quiet_transformers
from brainstacks.checkpoint import _convert, _convert_by_transformers
from brainstacks.config import PROJECTIONS
from brainstacks.errors import UnsupportedModel
from brainstacks.gguf_checkpoint import GgufCheckpoint
from brainstacks.gguf_file import GgufFile
from brainstacks.layers.projections import find_sites
from tests.tiny import byte_tokenizer
from tests.tiny_gguf import FAMILIES, gguf_model, save_gguf

EVERY = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.F16, Type.BF16, Type.F32)


def read(path: Path) -> GgufCheckpoint:
    return GgufCheckpoint(GgufFile(path))


def same_files(first: Path, second: Path) -> None:
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def convert_both(path: Path, to: Path) -> tuple[Path, Path]:
    found, exact = to / "found", to / "exact"
    found.mkdir()
    exact.mkdir()
    with quiet_transformers():
        _convert(path, found)
        _convert_by_transformers(path, exact)
    return found, exact


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_converted_as_transformers_does_to_the_last_byte(
    tmp_path: Path, family: str, tied: bool
) -> None:
    path = save_gguf(tmp_path / "base.gguf", family, EVERY, tie_word_embeddings=tied)
    same_files(*convert_both(path, tmp_path))


@pytest.mark.slow
def test_the_packaged_base_is_converted_as_transformers_does_to_the_last_byte(tmp_path: Path) -> None:
    same_files(*convert_both(locate("packaged:smollm2-135m-instruct").path, tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_weights_are_those_of_the_models_own_linears(tmp_path: Path, family: str) -> None:
    path = save_gguf(tmp_path / "base.gguf", family, EVERY)
    checkpoint = read(path)
    weights = dict(checkpoint.weights())
    sites = find_sites(gguf_model(family))
    for (layer, projection), site in sites.items():
        part = "self_attn" if projection in PROJECTIONS[:4] else "mlp"
        values = weights[f"model.layers.{layer}.{part}.{projection}.weight"]
        original = site.module.get_parameter("weight")
        assert float((values - original).norm() / original.norm()) < 0.12  # no row has moved
        blocks = checkpoint.blocks(layer, projection)
        if blocks is not None:
            assert np.array_equal(blocks.values(), values.numpy())
    with_blocks = [checkpoint.blocks(*site) is not None for site in sites]
    assert sum(with_blocks) == 10  # of fourteen, in turn five formats with blocks and three without
    head = checkpoint.head_blocks()
    assert head is not None
    assert np.array_equal(head.values(), weights["model.embed_tokens.weight"].numpy())


def test_files_that_lie_beside_the_gguf_file_are_no_part_of_it(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "base.gguf")
    before = read(path).tokenizer()
    byte_tokenizer().save_pretrained(tmp_path)
    found = read(path).tokenizer()
    assert found.get_vocab() == before.get_vocab()
    assert found("he").input_ids == before("he").input_ids


def test_an_untied_head_has_blocks_of_its_own(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "base.gguf", tie_word_embeddings=False)
    checkpoint = read(path)
    head = checkpoint.head_blocks()
    assert head is not None
    assert np.array_equal(head.values(), dict(checkpoint.weights())["lm_head.weight"].numpy())
    plain = read(save_gguf(tmp_path / "plain.gguf", head=Type.F16))
    assert plain.head_blocks() is None


def test_a_file_that_lacks_a_weight_or_is_of_another_architecture_is_refused(tmp_path: Path) -> None:
    checkpoint = read(save_gguf(tmp_path / "base.gguf"))
    tensors = checkpoint._file.tensors
    tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_down.weight"]
    with pytest.raises(UnsupportedModel, match=r"has \(64, 96\) as model\.layers\.1\.mlp\.up_proj\.weight"):
        dict(checkpoint.weights())
    del tensors["blk.1.ffn_up.weight"]
    with pytest.raises(UnsupportedModel, match=r"base\.gguf has no model\.layers\.1\.mlp\.up_proj\.weight"):
        dict(checkpoint.weights())
    checkpoint._file.metadata["general.architecture"] = "mamba"
    with pytest.raises(UnsupportedModel, match="'mamba'; known are llama, qwen2, qwen3, gemma3"):
        GgufCheckpoint(checkpoint._file)
