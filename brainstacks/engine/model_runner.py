"""One step on the device: packed tokens in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.engine import attention
from brainstacks.engine.batch import StepBatch, build
from brainstacks.engine.kv_cache import PagedCache, attention_shape
from brainstacks.engine.scheduler import Row
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.linear4bit import shorten
from brainstacks.routing.features import mixed_hidden_states


class ModelRunner:
    """Runs the hooked base over the paged cache.

    Args:
        base: its attention implementation is switched to the paged cache's, which is plain SDPA elsewhere,
            and the forwards of its packed 4-bit projections are shortened.
        hooks: attached to `base`.
        blocks: of KV memory.
        decode_rows: for deterministic steps: how many rows a step of decoding computes, whatever there is to
            decode; 0: what there is.
    """

    def __init__(self, base: BaseModel, hooks: CompositionHooks, blocks: int, decode_rows: int = 0) -> None:
        attention.register()
        base.model.set_attn_implementation(attention.IMPLEMENTATION)
        shorten(site.module for site in base.sites.values())
        kv_heads, head_dim = attention_shape(base)
        self._base = base
        self._hooks = hooks
        self._decode_rows = decode_rows
        self.cache = PagedCache(
            layers=base.identity.layers,
            blocks=blocks,
            kv_heads=kv_heads,
            head_dim=head_dim,
            device=base.device,
            dtype=base.dtype,
        )
        self._softcap = getattr(base.model.config.get_text_config(), "final_logit_softcapping", None)
        # A 4-d mask is taken as it is; paged attention makes its own.
        self._no_mask = torch.empty(1, 1, 0, 0, device=base.device)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], bank: StackBank) -> tuple[StepBatch, Tensor]:
        """Compute `rows` and store their keys and values.

        Returns:
            the batch, and logits [L, V] float32 of its `logit_indices`.
        """
        batch = build(rows, self.cache, self._base.device, self._decode_rows)
        bound = bank.bind(batch.weights, packed=True, invariant=self._decode_rows > 0)
        with self._hooks.composed(*([bound] if bound.buckets else [])):
            hidden = self._base.model.get_decoder()(
                input_ids=batch.input_ids, use_cache=False, **self._context(batch)
            ).last_hidden_state
        logits = self._base.model.get_output_embeddings()(hidden[0, batch.logit_indices]).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return batch, logits

    @torch.inference_mode()
    def features(self, rows: Sequence[Row], mid_weight: float, last_weight: float) -> list[Tensor]:
        """Compute `rows` with the base alone and store their keys and values.

        Returns:
            the router's features of each row's tokens, [count, d] float32; see `routing.features`.
        """
        batch = build(rows, self.cache, self._base.device)
        packed = mixed_hidden_states(
            self._base.model,
            batch.input_ids,
            mid_weight=mid_weight,
            last_weight=last_weight,
            **self._context(batch),
        )
        found = dict(zip(batch.rows, packed[0].split([row.count for row in batch.rows]), strict=True))
        return [found[row] for row in rows]

    def _context(self, batch: StepBatch) -> dict[str, Any]:
        """What the decoder is told besides the tokens."""
        return {
            "position_ids": batch.position_ids,
            "attention_mask": self._no_mask,
            "paged": batch.paged,
        }
