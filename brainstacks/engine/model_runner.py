"""One step on the device: packed tokens in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.engine import attention
from brainstacks.engine.batch import StepBatch, build
from brainstacks.engine.kv_cache import SlotCache
from brainstacks.engine.scheduler import Row
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks


class ModelRunner:
    """Runs the hooked base over the slot cache.

    Args:
        base: its attention implementation is switched to the slot cache's, which is plain SDPA elsewhere.
        hooks: attached to `base`.
    """

    def __init__(self, base: BaseModel, hooks: CompositionHooks) -> None:
        attention.register()
        base.model.set_attn_implementation(attention.IMPLEMENTATION)
        config = base.model.config.get_text_config()
        heads = config.num_attention_heads
        self._base = base
        self._hooks = hooks
        self.cache = SlotCache(
            layers=base.identity.layers,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            device=base.device,
            dtype=base.dtype,
        )
        self._softcap = getattr(config, "final_logit_softcapping", None)
        # A 4-d mask is taken as it is; attention over slots makes its own.
        self._no_mask = torch.empty(1, 1, 0, 0, device=base.device)

    @torch.inference_mode()
    def run(self, rows: list[Row], bank: StackBank) -> tuple[StepBatch, Tensor]:
        """Compute `rows` and store their keys and values.

        Returns:
            the batch, and logits [L, V] float32 of its `logit_indices`.
        """
        batch = build(rows, self.cache, self._base.device)
        bound = bank.bind(batch.weights, packed=True)
        with self._hooks.composed(*([bound] if bound.buckets else [])):
            hidden = self._base.model.get_decoder()(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=self._no_mask,
                use_cache=False,
                slots=batch.slots,
            ).last_hidden_state
        logits = self._base.model.get_output_embeddings()(hidden[0, batch.logit_indices]).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return batch, logits
