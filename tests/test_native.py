"""`--quantization native`: a base computes with its GGUF file's own values, and gives its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from brainstacks import ComposedModel
from brainstacks.base_model import BaseModel, load_base
from brainstacks.errors import ConfigError, UnsupportedModel
from brainstacks.layers.blocks import Blocks
from tests.tiny import save_base
from tests.tiny_gguf import FAMILIES, save_gguf

FORMATS = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.F16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def native(path: Path, **options: Any) -> BaseModel:
    return load_base(path, **{"quantization": "native", "device": "cpu", **options})


def given(blocks: Blocks | None) -> Blocks:
    if blocks is None:
        raise AssertionError("no blocks")
    return blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_holds_the_files_values_and_gives_their_blocks(tmp_path: Path, family: str) -> None:
    path = save_gguf(tmp_path / "base.gguf", family, FORMATS)
    base = native(path)
    assert (base.quantization, base.dtype) == ("native", torch.float32)
    without = 0
    for (layer, projection), site in base.sites.items():
        blocks = base.blocks(layer, projection)
        if blocks is None:
            without += 1
        else:
            assert np.array_equal(blocks.values(), site.module.get_parameter("weight").numpy())
    assert without == 2  # of fourteen projections, those in the sixth of six formats
    embedding = base.model.get_input_embeddings().weight
    assert np.array_equal(given(base.head_blocks()).values(), embedding.numpy())
    assert base.model.get_output_embeddings().weight is embedding
    plain = load_base(path, quantization="none", device="cpu")
    assert base.identity == plain.identity
    assert base.eos_token_ids == plain.eos_token_ids


def test_its_values_are_not_those_of_the_bfloat16_checkpoint(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "base.gguf")
    reader = gguf.GGUFReader(path)
    stored = next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight")
    exact = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type))
    weight = native(path).sites[1, "down_proj"].module.get_parameter("weight")
    assert torch.equal(weight, exact)
    assert not torch.equal(weight, exact.bfloat16().float())
    asked = native(path, dtype=torch.bfloat16).sites[1, "down_proj"].module.get_parameter("weight")
    assert torch.equal(asked, exact.bfloat16())


def test_gradients_reach_its_inputs(tmp_path: Path) -> None:
    base = native(save_gguf(tmp_path / "base.gguf"))
    site = base.sites[0, "q_proj"]
    x = torch.randn(1, 5, site.d_in, generator=torch.Generator().manual_seed(0)).requires_grad_()
    site.module(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(
        x.grad[0, 0], torch.from_numpy(given(base.blocks(0, "q_proj")).values().sum(0))
    )


def test_it_generates(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "base.gguf")
    model = ComposedModel.load(path, quantization="native", device="cpu")
    answer = model.generate(["he"], max_tokens=4, temperature=0, weights=None)
    assert len(answer) == 1


def test_the_other_quantizations_give_their_blocks(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "base.gguf", hidden_size=64, intermediate_size=128)
    four, eight, none = (
        load_base(path, quantization=q, device="cpu", dtype=torch.float32) for q in ("nf4", "int8", "none")
    )
    weight = none.sites[1, "up_proj"].module.get_parameter("weight").numpy()
    for base, error in ((four, 0.12), (eight, 0.02)):
        values = given(base.blocks(1, "up_proj")).values()
        assert np.linalg.norm(values - weight) < error * np.linalg.norm(weight)
        assert base.head_blocks() is None
    assert none.blocks(1, "up_proj") is None
    assert none.head_blocks() is None


def test_a_base_that_is_no_gguf_file_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'base' is no such file; take a \.gguf file or a packaged base"):
        native(save_base(tmp_path / "base"))
    with pytest.raises(ConfigError, match="'model' is no such file"):
        load_base("organisation/model", quantization="native")


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match="'mamba'; known are llama"):
        native(path)


@pytest.mark.slow
def test_the_packaged_base_computes_with_the_files_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the user's own cache
    base = native("packaged:smollm2-135m-instruct")  # type: ignore[arg-type]
    for layer, projection in ((0, "q_proj"), (17, "k_proj"), (29, "down_proj")):
        blocks = given(base.blocks(layer, projection))
        weight = base.sites[layer, projection].module.get_parameter("weight")
        assert blocks.block == 32
        assert np.array_equal(blocks.values(), weight.numpy())
    assert given(base.head_blocks()).levels is None  # Q8_0
    rounded = load_base(
        "packaged:smollm2-135m-instruct", quantization="none", dtype=torch.float32, device="cpu"
    )
    assert base.identity == rounded.identity
    ids = torch.tensor([base.tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        found, near = base.model(ids).logits[0, -1], rounded.model(ids).logits[0, -1]
    assert not torch.equal(found, near)
    assert torch.nn.functional.cosine_similarity(found, near, dim=0) > 0.999
