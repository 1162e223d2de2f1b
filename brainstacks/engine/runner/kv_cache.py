"""Keys and values in blocks of `BLOCK_TOKENS` tokens; which completion owns which block is not known here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.device import free_bytes
from brainstacks.device_map import Part
from brainstacks.engine.block_manager import BLOCK_TOKENS, BlockCopy
from brainstacks.errors import ConfigError

LANES = 16
"""Dimensions that lie side by side: a vector of the compiled step."""

MOST_TOKENS = 131072
"""Of KV memory whose size nobody chose."""


def affordable_tokens(base: BaseModel) -> int:
    """Tokens whose keys and values fill half of the memory that is free now, and `MOST_TOKENS` at most."""
    return max(BLOCK_TOKENS, min(MOST_TOKENS, free_bytes(base.device) // 2 // token_bytes(base)))


def token_bytes(base: BaseModel) -> int:
    """Of a token's keys and values in all layers."""
    heads, dim = attention_shape(base)
    return 2 * base.identity.layers * heads * _vectors(dim) * LANES * base.dtype.itemsize


def _vectors(dim: int) -> int:
    """That hold so many dimensions."""
    return -(-dim // LANES)


def attention_shape(base: BaseModel) -> tuple[int, int]:
    """(KV heads, dimension of a head)."""
    config = base.model.config.get_text_config()
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_key_value_heads), int(dim)


NewCache = Callable[[type["PagedCache"]], "PagedCache"]
"""Allocates the KV memory in a layout."""


def new_cache(base: BaseModel, blocks: int) -> NewCache:
    """For `base` and so many blocks of the pool."""
    kv_heads, head_dim = attention_shape(base)
    return lambda layout: layout(base.parts, blocks, kv_heads, head_dim, base.dtype)


class PagedCache:
    """Keys and values, a token's dimensions side by side. Allocated once and never cleared: on a CPU, pages
    that were never written take no memory. What a block holds beyond the tokens written to it is undefined,
    and must not be read: it may be NaN.

    Args:
        parts: the decoder's layers, and where they are: their keys and values are there too.
        blocks: of the pool; one more is allocated, for padding.
        kv_heads, head_dim: of the attention.
        dtype: of keys and values.

    Attributes:
        keys, values: per layer [blocks, kv_heads, BLOCK_TOKENS, head_dim].

    Raises:
        ConfigError: the device has no room for it.
    """

    def __init__(
        self, parts: Sequence[Part], blocks: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self._stored: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for part in parts:
            shapes = [(len(part.layers), blocks + 1, kv_heads, *cell) for cell in self._cells()]
            try:
                keys, values = (torch.empty(shape, device=part.device, dtype=dtype) for shape in shapes)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                gigabytes = sum(map(math.prod, shapes)) * dtype.itemsize / 1e9
                raise ConfigError(
                    f"kv_cache_tokens is {blocks * BLOCK_TOKENS}, which takes {gigabytes:.1f} GB on "
                    f"{part.device}, more than there is; ask for fewer"
                ) from error
            self._stored += [keys, values]
            self.keys += keys.unbind()
            self.values += values.unbind()

    def _cells(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of a block's keys and values of one head."""
        return (BLOCK_TOKENS, self.head_dim), (BLOCK_TOKENS, self.head_dim)

    def write(self, layer: int, blocks: Tensor, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Store keys and values [kv_heads, T, head_dim] of tokens, each at its place [T] of its block [T]."""
        self.keys[layer][blocks, :, places] = key.transpose(0, 1)
        self.values[layer][blocks, :, places] = value.transpose(0, 1)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of blocks [..., m]: [..., kv_heads, m * BLOCK_TOKENS, head_dim] each."""
        keys, values = (
            stored[layer][blocks].movedim(-4, -3).flatten(-3, -2) for stored in (self.keys, self.values)
        )
        return keys, values

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy whole blocks, in every layer."""
        for source, target in copies:
            for stored in self._stored:
                stored[:, target] = stored[:, source]


class VectorCache(PagedCache):
    """Keys and values as the compiled step reads them.

    Attributes:
        keys: per layer [blocks, kv_heads, depth, BLOCK_TOKENS], depth being head_dim filled up to whole
            vectors: a dimension of a block's keys is one vector.
        values: per layer [blocks, kv_heads, depth / LANES, BLOCK_TOKENS, LANES], a token's dimensions
            likewise.
    """

    def _cells(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        vectors = _vectors(self.head_dim)
        return (vectors * LANES, BLOCK_TOKENS), (vectors, BLOCK_TOKENS, LANES)

    def write(self, layer: int, blocks: Tensor, places: Tensor, key: Tensor, value: Tensor) -> None:
        self.keys[layer][blocks, :, : self.head_dim, places] = key.transpose(0, 1)
        filled = F.pad(value.transpose(0, 1), (0, -self.head_dim % LANES))
        self.values[layer][blocks, :, :, places] = filled.unflatten(-1, (-1, LANES))

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.keys[layer][blocks].movedim(-4, -3).transpose(-1, -2).flatten(-3, -2)
        values = self.values[layer][blocks].movedim(-5, -4).transpose(-3, -2).flatten(-2).flatten(-3, -2)
        return keys[..., : self.head_dim], values[..., : self.head_dim]
