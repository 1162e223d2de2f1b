"""The tables of a decoder say what it is; what the compiled step does not compute is refused by name."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from brainstacks.errors import UnsupportedModel
from brainstacks.kernels.tiles import PANEL
from brainstacks.layers.blocks import Blocks
from brainstacks.layers.families import ROTARY
from brainstacks.layers.flat_model import FINE, FINEST, FlatModel
from brainstacks.layers.projections import find_sites
from tests.tiny import FAMILIES, VOCAB, WINDOW, tiny_model

Array = np.ndarray[Any, Any]


def flat(model: Any, *, fast: bool = False, blocks: Any = None) -> FlatModel:
    return FlatModel(model, find_sites(model), blocks or (lambda layer, name: None), None, fast=fast)


def at(address: int, count: int) -> Array:
    """float32 there."""
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_windows_biases_and_scales_of_every_family(family: str) -> None:
    model = tiny_model(family)
    found = flat(model)
    gemma = family == "gemma3_text"
    for layer, decoder in zip(found.layers, model.model.layers, strict=True):
        assert [bool(norm) for norm in layer["norms"]] == [True, gemma, True, gemma]
        weight = decoder.input_layernorm.weight.numpy() + (1.0 if gemma else 0.0)
        np.testing.assert_array_equal(at(int(layer["norms"][0]), 32), weight.astype(np.float32))
        assert bool(layer["q_norm"]) == bool(layer["k_norm"]) == (family in ("qwen3", "gemma3_text"))
        assert layer["scale"] == pytest.approx(8**-0.5)
    windows = {"mistral": [WINDOW, WINDOW], "gemma3_text": [WINDOW, 0]}.get(family, [0, 0])
    assert found.layers["window"].tolist() == windows
    assert found.layers["angles"].tolist() == ([1, 0] if gemma else [0, 0])
    assert found.gelu == int(gemma)
    biases = [bool(at(int(group["bias"]), int(group["columns"])).any()) for group in found.groups]
    assert biases == [family == "qwen2" and group % 4 == 0 and group < 8 for group in range(9)]
    assert found.dims.vocab == VOCAB


def test_linears_of_a_group_lie_side_by_side_in_whole_panels() -> None:
    model = tiny_model(num_key_value_heads=1, head_dim=12)
    found = flat(model)
    group = found.groups[0]
    linears = found.linears[group["first"] : group["first"] + group["linears"]]
    assert linears["column"].tolist() == [0, 48, 64]
    assert linears["d_out"].tolist() == [48, 12, 12]
    assert group["columns"] == 80
    assert group["panels"] == linears["panels"].sum() == 5
    assert found.groups["linears"].tolist() == [3, 1, 2, 1] * 2 + [1]
    assert found.linears["projection"].tolist() == [*range(7), *range(7), 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_angles_are_those_of_transformers_by_position_and_grow_with_it(family: str) -> None:
    model = tiny_model(family)
    found = flat(model)
    for positions in (1, 5, 40):
        cos, sin = found.angles(positions)
        assert cos.shape == sin.shape
        assert cos.shape[1] >= positions
    kinds = sorted(set(model.config.layer_types)) if family == "gemma3_text" else [None]
    ids = torch.arange(40)[None]
    for i, kind in enumerate(kinds):
        rotary: Any = model.model.rotary_emb
        wanted = rotary(torch.zeros(1), ids, *([kind] if kind else []))
        for held, table in zip((cos, sin), wanted, strict=True):
            np.testing.assert_array_equal(held[i, :40], table[0].numpy())


@pytest.mark.parametrize("rope", sorted(set(ROTARY) - {"default"}))
def test_angles_of_other_kinds_do_not_depend_on_how_many_there_are(rope: str) -> None:
    parameters: dict[str, Any] = {"rope_type": rope, "rope_theta": 1e4, "factor": 4.0}
    if rope == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rope in ("llama3", "yarn"):
        parameters |= {"original_max_position_embeddings": 64}
    model = tiny_model(rope_parameters=parameters)
    few, many = flat(model).angles(10), flat(model).angles(400)
    for left, right in zip(few, many, strict=True):
        np.testing.assert_array_equal(left[:, :10], right[:, :10])


def some_blocks(model: Any, block: int, levels: Array | None = None) -> Any:
    sites = find_sites(model)

    def blocks(layer: int, name: str) -> Blocks:
        d_out, d_in = sites[layer, name].module.get_parameter("weight").shape
        size = 16 if name == "up_proj" else block
        codes: Any = np.zeros((d_out, d_in), np.int8 if levels is None else np.uint8)
        return Blocks(codes, levels, np.ones((d_out, d_in // size), np.float32), None, size)

    return blocks


@pytest.mark.parametrize(
    ("levels", "last"),
    [(None, FINEST), (np.arange(16.0, dtype=np.float32), FINEST), (np.linspace(-1, 1, 16, dtype="f4"), FINE)],
)
def test_linears_with_one_input_share_the_smallest_block_and_inputs_with_outliers_have_fine_ones(
    levels: Array | None, last: int
) -> None:
    model = tiny_model(hidden_size=64, intermediate_size=128, head_dim=16)
    found = flat(model, fast=True, blocks=some_blocks(model, 64, levels))
    assert found.groups["block"].tolist() == [last, FINE, 16, last] * 2 + [64]
    assert found.linears["chunks"][4:6].tolist() == [1, 1]
    assert found.groups["fast"].all(), "the head is rounded too"
    assert not found.groups["exact"].any()


def test_a_head_whose_inputs_are_no_whole_blocks_stays_as_it_is() -> None:
    model = tiny_model(hidden_size=40, head_dim=16)
    sites = find_sites(model)

    def blocks(layer: int, name: str) -> Blocks | None:
        if name != "o_proj":
            return None
        codes = np.zeros(tuple(sites[layer, name].module.get_parameter("weight").shape), np.int8)
        return Blocks(codes, None, np.ones((len(codes), 1), np.float32), None, 64)

    found = flat(model, fast=True, blocks=blocks)
    assert found.groups["fast"].tolist() == [0, 1, 0, 0] * 2 + [0]


def test_what_the_tables_point_to_is_counted_and_kept() -> None:
    model = tiny_model()
    found = flat(model)
    weights = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    assert found.nbytes >= 4 * weights
    assert found.dims.width == 32
    assert found.dims.outputs >= PANEL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "the activation 'relu'"),
        ({"attention_bias": True}, "a bias on o_proj or down_proj"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "embedding 'dynamic'",
        ),
    ],
)
def test_what_departs_from_the_compiled_step_is_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        flat(tiny_model(**changes))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("attn_logit_softcapping", 50.0, "a soft cap"),
        ("use_bidirectional_attention", True, "attention in both directions"),
        ("model_type", "gemma2", "llama, mistral, qwen2, qwen3, gemma3_text, not gemma2"),
    ],
)
def test_a_configuration_of_another_decoder_is_refused_by_name(name: str, value: Any, message: str) -> None:
    model = tiny_model("gemma3_text")
    setattr(model.config, name, value)
    with pytest.raises(UnsupportedModel, match=message):
        flat(model)
