"""Keys and values of the running sequences: one slot each, in one tensor per layer."""

from __future__ import annotations

import torch
from torch import Tensor


class SlotCache:
    """Grows to the most slots and the longest sequence that it has seen.

    Args:
        layers: decoder layers.
        kv_heads, head_dim: of the attention.
        device, dtype: of keys and values.

    Attributes:
        keys, values: per layer [slots, kv_heads, capacity, head_dim].
    """

    GROWTH = 256  # tokens; capacity is a multiple, so that it changes seldom

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._layers = layers
        self._shape = (kv_heads, head_dim)
        self._device, self._dtype = device, dtype
        self.clear()

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self.slots = self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._allocate(1, self.GROWTH)

    def reserve(self, slots: int, tokens: int) -> None:
        """Have room for `slots` sequences of `tokens` tokens; what is stored stays."""
        if slots <= self.slots and tokens <= self.capacity:
            return
        capacity = max(self.capacity, -(-tokens // self.GROWTH) * self.GROWTH)
        # Doubling makes the copies cost a constant per token over a sequence's life.
        if tokens > self.capacity:
            capacity = max(capacity, min(2 * self.capacity, capacity + 4 * self.GROWTH))
        self._allocate(max(self.slots, slots), capacity)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of slot `source` to slot `target`."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :tokens] = tensor[source, :, :tokens]

    @torch.inference_mode(False)  # slots are moved and freed outside a step too
    def _allocate(self, slots: int, capacity: int) -> None:
        kv_heads, head_dim = self._shape
        for side in (self.keys, self.values):
            for layer in range(self._layers):
                # Zeros, not empty: a masked position still multiplies its value by 0, and 0 * NaN is NaN.
                new = torch.zeros(slots, kv_heads, capacity, head_dim, device=self._device, dtype=self._dtype)
                if layer < len(side):
                    # Cut, because an allocation that ran out of memory half-way has grown some layers.
                    stored = (slice(self.slots), slice(None), slice(self.capacity))
                    new[stored] = side[layer][stored]
                    side[layer] = new
                else:
                    side.append(new)
        self.slots, self.capacity = slots, capacity
