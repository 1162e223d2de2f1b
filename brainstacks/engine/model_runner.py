"""One step on the device: rows in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine import backend
from brainstacks.engine.batch import StepBatch, build
from brainstacks.engine.kv_cache import PagedCache, attention_shape
from brainstacks.engine.scheduler import Row
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks


class ModelRunner:
    """Runs the base over the paged cache, on the backend that fits it.

    Args:
        hooks: attached to `base`.
        blocks: of KV memory.

    Raises:
        ConfigError: there is no room for the KV cache, or `config.backend` cannot compute this base.
    """

    def __init__(self, base: BaseModel, hooks: CompositionHooks, blocks: int, config: EngineConfig) -> None:
        kv_heads, head_dim = attention_shape(base)
        self.cache = PagedCache(
            layers=base.identity.layers,
            blocks=blocks,
            kv_heads=kv_heads,
            head_dim=head_dim,
            device=base.device,
            dtype=base.dtype,
        )
        self.backend = backend.choose(base, hooks, self.cache, config)
        self._decode_rows = config.max_batch_size if config.deterministic and self.backend.fixed_shapes else 0
        self._softcap = getattr(base.model.config.get_text_config(), "final_logit_softcapping", None)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], bank: StackBank) -> tuple[StepBatch, Tensor]:
        """Compute `rows` and store their keys and values.

        Returns:
            the batch, and logits [L, V] float32 of its `wanted` tokens.
        """
        batch = build(rows, self._decode_rows)
        logits = self.backend.run(batch, bank)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return batch, logits

    @torch.inference_mode()
    def features(self, rows: Sequence[Row], mid_weight: float, last_weight: float) -> list[Tensor]:
        """Compute `rows` with the base alone and store their keys and values.

        Returns:
            the router's features of each row's tokens, [count, d] float32; see `routing.features`.
        """
        batch = build(rows)
        mid, last = self.backend.hidden_states(batch)
        packed = mid_weight * mid + last_weight * last
        found = dict(zip(batch.rows, packed.split([row.count for row in batch.rows]), strict=True))
        return [found[row] for row in rows]
