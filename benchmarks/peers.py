"""What the engine is compared with, each on a base of its own: they rebuild or wrap its modules."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import llama_cpp
from benchmarks.shuttle_baseline import ShuttleModel
from benchmarks.timing import Contestant, OnStep, say
from brainstacks.base_files import PACKAGED, quiet_transformers
from brainstacks.base_model import BaseModel

SHUTTLE_TOKENS = 8
"""Its rate is the same from token to token, and each takes a large part of a second."""


def installed(package: str) -> bool:
    return find_spec(package) is not None


class _Streamer:
    """What `generate` asks of a streamer: the prompts come first, then one token per row and step."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self._prompts_seen = False

    def put(self, ids: torch.Tensor) -> None:
        if self._prompts_seen:
            self._on_step({row: [token] for row, token in enumerate(ids.flatten().tolist())})
        self._prompts_seen = True

    def end(self) -> None:
        """Nothing is held back."""


def transformers_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
    *,
    before: Callable[[], None] = lambda: None,
    **options: Any,
) -> Contestant:
    """transformers' `generate`, greedy, on a static batch of prompts of one length.

    Args:
        before: called before each run.
        options: for `generate`, besides.
    """
    ids = torch.tensor([list(prompt) for prompt in prompts], device=device)

    def generate(tokens: int, on_step: OnStep) -> None:
        before()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=_Streamer(on_step),
            **options,
        )

    return Contestant(generate, rows=len(prompts))


def dequantized(base: BaseModel, dtype: torch.dtype) -> Any:
    """The values of `base` as a model of plain linears.

    Args:
        base: loaded and not run yet (its weights may be packed then); it becomes that model.
    """
    if base.quantization == "none":
        return base.model.to(dtype)
    with quiet_transformers():
        return base.model.dequantize().to(dtype)


class PeftPeer:
    """PEFT with several LoRAs on all seven projections, random, in the base's dtype.

    Args:
        base: wrapped in place; serve nothing else with it.
    """

    def __init__(self, base: BaseModel, *, adapters: int = 4, rank: int = 64) -> None:
        peft = importlib.import_module("peft")
        sites = {id(site.module) for site in base.sites.values()}
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=[name for name, m in base.model.named_modules() if id(m) in sites],
            init_lora_weights=False,
        )
        self.adapters = tuple(f"lora-{i}" for i in range(adapters))
        self._device = base.device
        with warnings.catch_warnings():
            # About a spelling that PEFT will have to change; no figure depends on it.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self._model = peft.get_peft_model(base.model, config, adapter_name=self.adapters[0])
            for name in self.adapters[1:]:
                self._model.add_adapter(name, config)
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


def shuttle_stream(
    shuttle: ShuttleModel, prompt: Sequence[int], weights: Mapping[str, float], *, always_copy: bool = True
) -> Contestant:
    """The published scheme, which takes one prompt at a time: its rate is that of any number of streams."""

    def generate(tokens: int, on_step: OnStep) -> None:
        for token in shuttle.generate(tuple(prompt), weights, tokens, always_copy=always_copy):
            on_step({0: [token]})

    return Contestant(generate, most_tokens=SHUTTLE_TOKENS)


def gguf_of(base: str) -> Path | None:
    """The GGUF file that `base` names, or that its package carries."""
    if base in PACKAGED:
        package, filename, _ = PACKAGED[base]
        spec = find_spec(package)
        return (
            Path(spec.submodule_search_locations[0]) / filename
            if spec and spec.submodule_search_locations
            else None
        )
    return Path(base) if base.endswith(".gguf") else None


def llama_cpp_file(base: str, device: torch.device) -> Path | None:
    """The GGUF file of `base`, where llama.cpp can be compared with; if not, a line says why."""
    gguf = gguf_of(base)
    reasons = {
        f"it runs on the CPU, and the base on {device.type}": device.type != "cpu",
        "the base is no GGUF file": gguf is None,
        f"{llama_cpp.PACKAGE} is not installed": not installed(llama_cpp.PACKAGE),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        say(f"llama.cpp is left out: {reason}")
        return None
    return gguf
