"""PEFT's LoRAs on all seven projections of a base."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

from benchmarks.instruments.timing import Contestant
from benchmarks.peers.transformers_generate import transformers_batch
from brainstacks.base_model import BaseModel


def with_loras(base: BaseModel, names: Sequence[str] = ("default",), **settings: Any) -> Any:
    """PEFT's model of `base`, whose modules it wraps in place, with a LoRA of each name.

    Args:
        settings: of `LoraConfig`, the same for all.
    """
    peft = importlib.import_module("peft")
    targets = [site.name for site in base.sites.values()]
    config = peft.LoraConfig(target_modules=targets, **settings)
    with warnings.catch_warnings():
        # About a spelling that PEFT will have to change; no figure depends on it.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model = peft.get_peft_model(base.model, config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
    return model


class PeftPeer:
    """PEFT with several LoRAs, random, in the base's dtype.

    Args:
        base: wrapped in place; serve nothing else with it.
    """

    def __init__(self, base: BaseModel, *, adapters: int = 4, rank: int = 64) -> None:
        self.adapters = tuple(f"lora-{i}" for i in range(adapters))
        self._device = base.device
        self._model = with_loras(base, self.adapters, r=rank, lora_alpha=rank, init_lora_weights=False)
        for name, parameter in self._model.named_parameters():
            if "lora_" in name:  # they start in float32, whatever the base computes in
                parameter.data = parameter.data.to(base.dtype)
        self._model.eval()

    def summed(self, prompts: Sequence[Sequence[int]], count: int) -> Contestant:
        """Every row with the sum of the first `count` adapters."""
        chosen = list(self.adapters[:count])
        return transformers_batch(
            self._model, prompts, self._device, before=lambda: self._model.base_model.set_adapter(chosen)
        )

    def mixed(self, prompts: Sequence[Sequence[int]]) -> Contestant:
        """Each row with one adapter, in turn (PEFT's mixed batch)."""
        names = [self.adapters[row % len(self.adapters)] for row in range(len(prompts))]
        return transformers_batch(
            self._model,
            prompts,
            self._device,
            before=lambda: self._model.base_model.set_adapter(list(self.adapters)),
            adapter_names=names,
        )
