"""The blocks of a GGUF file's own 4- to 8-bit formats, and the values of every format.

The formats are llama.cpp's; what they mean is what the `gguf` package's `dequantize` gives, and these are its
values to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from brainstacks.gguf_file import GgufTensor
from brainstacks.layers.blocks import Blocks

_CHUNK = 1 << 20
"""Values that are dequantised at a time: what stays in a cache is read once from memory."""

_NIBBLES = np.arange(16, dtype=np.float32)


class _Decoded(NamedTuple):
    """Of n stored blocks: codes `[n, size]`, scales and offsets `[n, size // block]`."""

    codes: NDArray[np.uint8] | NDArray[np.int8]
    levels: NDArray[np.float32] | None
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None


def gguf_blocks(tensor: GgufTensor) -> Blocks | None:
    """The blocks of a matrix; None where it is stored in no format that `Blocks` expresses."""
    decode = _DECODERS.get(tensor.type)
    if decode is None or len(tensor.shape) != 2:
        return None
    d_out, d_in = tensor.shape
    found = decode(tensor.data.reshape(-1, GGML_QUANT_SIZES[tensor.type][1]))
    return Blocks(
        codes=found.codes.reshape(d_out, d_in),
        levels=found.levels,
        scales=found.scales.reshape(d_out, -1),
        offsets=None if found.offsets is None else found.offsets.reshape(d_out, -1),
        block=d_in * d_out // found.scales.size,
    )


def gguf_values(tensor: GgufTensor) -> NDArray[np.float32]:
    """The tensor's values, float32, in its shape."""
    if tensor.type not in _DECODERS or len(tensor.shape) != 2:
        values: NDArray[np.float32] = gguf.dequantize(tensor.data, tensor.type).reshape(tensor.shape)
        return values
    rows, columns = tensor.shape
    out = np.empty((rows, columns), np.float32)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = tensor.data[start : start + step]
        blocks = gguf_blocks(GgufTensor(tensor.name, tensor.type, (len(part), columns), part))
        if blocks is not None:
            out[start : start + step] = blocks.values()
    return out


def _half(raw: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    """The float16 at byte `at` of every block, float32 `[n, 1]`."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view(np.float16).astype(np.float32)


def _halves(raw: NDArray[np.uint8], groups: int) -> NDArray[np.uint8]:
    """`[n, bytes]` -> the 4-bit codes `[n, 2 * bytes]`: of each group the low halves, then the high ones."""
    packed = raw.reshape(len(raw), groups, 1, -1)
    return np.concatenate([packed & 15, packed >> 4], axis=2).reshape(len(raw), -1)


def _fifth_bits(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[n, 4]` -> 16 where the bit is set, `[n, 32]`."""
    return np.unpackbits(raw, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(raw: NDArray[np.uint8]) -> _Decoded:
    return _Decoded(_halves(raw[:, 2:], 1), _NIBBLES - 8, _half(raw, 0), None)


def _q4_1(raw: NDArray[np.uint8]) -> _Decoded:
    return _Decoded(_halves(raw[:, 4:], 1), _NIBBLES, _half(raw, 0), _half(raw, 2))


def _q5_0(raw: NDArray[np.uint8]) -> _Decoded:
    codes = (_halves(raw[:, 6:], 1) | _fifth_bits(raw[:, 2:6])).astype(np.int8) - np.int8(16)
    return _Decoded(codes, None, _half(raw, 0), None)


def _q5_1(raw: NDArray[np.uint8]) -> _Decoded:
    codes = (_halves(raw[:, 8:], 1) | _fifth_bits(raw[:, 4:8])).astype(np.int8)
    return _Decoded(codes, None, _half(raw, 0), _half(raw, 2))


def _q8_0(raw: NDArray[np.uint8]) -> _Decoded:
    return _Decoded(np.ascontiguousarray(raw[:, 2:]).view(np.int8), None, _half(raw, 0), None)


def _k_scales(raw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and offsets `[n, 8]` of Q4_K and Q5_K: 6-bit factors of two float16 per block."""
    low, least, high = (raw[:, at : at + 4] for at in (4, 8, 12))
    factors = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    minima = np.concatenate([least & 0x3F, (high >> 4) | ((least >> 2) & 0x30)], axis=1)
    return _half(raw, 0) * factors.astype(np.float32), -(_half(raw, 2) * minima.astype(np.float32))


def _q4_k(raw: NDArray[np.uint8]) -> _Decoded:
    return _Decoded(_halves(raw[:, 16:], 4), _NIBBLES, *_k_scales(raw))


def _q5_k(raw: NDArray[np.uint8]) -> _Decoded:
    bits = np.arange(8, dtype=np.uint8)[:, None]
    fifth = ((raw[:, None, 16:48] >> bits) & 1).reshape(len(raw), -1) << 4
    return _Decoded((_halves(raw[:, 48:], 4) | fifth).astype(np.int8), None, *_k_scales(raw))


def _q6_k(raw: NDArray[np.uint8]) -> _Decoded:
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = ((raw[:, 128:192].reshape(len(raw), 2, 1, 32) >> shifts) & 3).reshape(len(raw), -1) << 4
    codes = (_halves(raw[:, :128], 2) | high).astype(np.int8) - np.int8(32)
    factors = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    return _Decoded(codes, None, _half(raw, 208) * factors, None)


_DECODERS: dict[Type, Callable[[NDArray[np.uint8]], _Decoded]] = {
    Type.Q4_0: _q4_0,
    Type.Q4_1: _q4_1,
    Type.Q4_K: _q4_k,
    Type.Q5_0: _q5_0,
    Type.Q5_1: _q5_1,
    Type.Q5_K: _q5_k,
    Type.Q6_K: _q6_k,
    Type.Q8_0: _q8_0,
}
