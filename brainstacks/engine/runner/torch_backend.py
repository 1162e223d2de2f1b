"""The readable step: transformers' own decoder with the hooks that add deltas, on any device, or several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.engine.runner import attention
from brainstacks.engine.runner.batch import StepBatch
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.routing.features import decoder_states


class TorchBackend:
    """Args:
    base: its attention implementation is switched to the paged cache's, which is plain SDPA elsewhere.
    hooks: attached to `base`.
    cache: whose keys and values it reads and writes.
    reason: why it was chosen.
    """

    fixed_shapes = True
    own_threads = False

    def __init__(self, base: BaseModel, hooks: CompositionHooks, cache: PagedCache, reason: str) -> None:
        attention.register()
        base.model.set_attn_implementation(attention.IMPLEMENTATION)
        where = base.device.type if len(base.parts) == 1 else base.where
        self.name, self.reason = f"torch ({where})", reason
        self.asynchronous = base.device.type != "cpu"
        self._base, self._hooks, self.cache = base, hooks, cache
        # A 4-d mask is taken as it is; paged attention makes its own.
        self._no_mask = torch.empty(1, 1, 0, 0, device=base.device)

    def prepare(self, stack: PackedStack) -> None:
        pass  # hooks compute with the stack itself

    def lay_out(self, batch: StepBatch, bank: StackBank) -> None:
        pass  # each step makes tensors of its own

    def run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        bound = bank.bind(batch.weights, apart=not batch.alone)
        with self._hooks.composed(*([bound] if bound else [])):
            hidden = self._base.model.get_decoder()(use_cache=False, **self._inputs(batch)).last_hidden_state
        wanted = torch.from_numpy(batch.wanted).to(self._base.device)
        logits: Tensor = self._base.model.get_output_embeddings()(hidden[0, wanted]).float()
        return logits

    def hidden_states(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        mid, last = decoder_states(self._base.model, **self._inputs(batch))
        return mid[0].float(), last[0].float()

    def _inputs(self, batch: StepBatch) -> dict[str, Any]:
        device = self._base.device
        return {
            "input_ids": torch.from_numpy(batch.ids).to(device, non_blocking=True)[None],
            "position_ids": torch.from_numpy(batch.positions).to(device, non_blocking=True)[None],
            "attention_mask": self._no_mask,
            "paged": attention.PagedContexts(
                {there: attention.paged_context(batch, self.cache, there) for there in self._base.devices}
            ),
        }
