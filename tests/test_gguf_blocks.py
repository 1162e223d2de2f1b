"""The blocks of every GGUF format give the values that the `gguf` package gives."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from brainstacks.gguf_blocks import gguf_blocks, gguf_values
from brainstacks.gguf_file import GgufTensor

FOUR_BITS = {Type.Q4_0: 32, Type.Q4_1: 32, Type.Q4_K: 32}
MORE_BITS = {Type.Q5_0: 32, Type.Q5_1: 32, Type.Q5_K: 32, Type.Q6_K: 16, Type.Q8_0: 32}
BLOCK = FOUR_BITS | MORE_BITS


def any_tensor(kind: Type, rows: int = 7, columns: int = 512) -> GgufTensor:
    """Every bit random, but the float16 scales, which are finite."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(int(kind))
    raw = random.integers(0, 256, (rows * columns // block, block_bytes), dtype=np.uint8)
    for at in {Type.Q6_K: (208,), Type.Q4_0: (0,), Type.Q5_0: (0,), Type.Q8_0: (0,)}.get(kind, (0, 2)):
        raw[:, at : at + 2] = random.normal(size=(len(raw), 1)).astype(np.float16).view(np.uint8)
    return GgufTensor("blk.0.attn_q.weight", kind, (rows, columns), raw.reshape(rows, -1))


@pytest.mark.parametrize("kind", BLOCK, ids=lambda kind: str(kind.name))
def test_the_blocks_of_a_format_are_what_gguf_dequantises(kind: Type) -> None:
    tensor = any_tensor(kind)
    exact = gguf.dequantize(tensor.data, kind)
    blocks = gguf_blocks(tensor)
    assert blocks is not None
    assert blocks.block == BLOCK[kind]
    assert blocks.scales.shape == (7, 512 // BLOCK[kind])
    if kind in FOUR_BITS:
        assert blocks.codes.dtype == np.uint8
        assert blocks.codes.max() == 15
        assert blocks.levels is not None
    else:
        assert blocks.codes.dtype == np.int8
        assert blocks.levels is None
    assert np.array_equal(blocks.values(), exact)
    assert np.array_equal(gguf_values(tensor), exact)


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q2_K], ids=lambda kind: str(kind.name))
def test_another_format_has_values_and_no_blocks(kind: Type) -> None:
    values = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    if kind is Type.Q2_K:
        tensor = any_tensor(kind, 3, 256)
    else:
        data = gguf.quantize(values, kind).view(np.uint8).reshape(3, -1)
        tensor = GgufTensor("output.weight", kind, (3, 256), data)
    assert gguf_blocks(tensor) is None
    assert np.array_equal(gguf_values(tensor), gguf.dequantize(tensor.data, kind), equal_nan=True)


def test_many_rows_are_dequantised_in_pieces_that_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brainstacks.gguf_blocks._CHUNK", 1024)
    tensor = any_tensor(Type.Q4_1)
    assert np.array_equal(gguf_values(tensor), gguf.dequantize(tensor.data, Type.Q4_1))
