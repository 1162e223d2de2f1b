"""Keys and values in blocks of `BLOCK_TOKENS` tokens; which sequence owns which block is not known here."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from brainstacks.engine.block_manager import BlockCopy
from brainstacks.engine.block_pool import BLOCK_TOKENS
from brainstacks.errors import ConfigError


class PagedCache:
    """Allocated once and never cleared: on a CPU, pages that were never written take no memory. What a block
    holds beyond the tokens written to it is undefined, and must not be read: it may be NaN.

    Args:
        layers: decoder layers.
        blocks: of the pool; one more is allocated, for padding.
        kv_heads, head_dim: of the attention.
        device, dtype: of keys and values.

    Attributes:
        keys, values: per layer [blocks, kv_heads, BLOCK_TOKENS, head_dim].

    Raises:
        ConfigError: the device has no room for it.
    """

    def __init__(
        self,
        layers: int,
        blocks: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (layers, blocks + 1, kv_heads)
        try:
            # A dimension of 16 keys lies side by side: compiled attention reads it as one vector.
            keys = torch.empty(*shape, head_dim, BLOCK_TOKENS, device=device, dtype=dtype)
            values = torch.empty(*shape, BLOCK_TOKENS, head_dim, device=device, dtype=dtype)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            tokens = blocks * BLOCK_TOKENS
            gigabytes = 2 * layers * tokens * kv_heads * head_dim * dtype.itemsize / 1e9
            raise ConfigError(
                f"kv_cache_tokens is {tokens}, which takes {gigabytes:.1f} GB on {device}, "
                "more than there is; ask for fewer"
            ) from error
        self._stored = (keys.transpose(-1, -2), values)
        self.keys, self.values = (list(stored.unbind()) for stored in self._stored)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy whole blocks, in every layer."""
        for source, target in copies:
            for stored in self._stored:
                stored[:, target] = stored[:, source]
