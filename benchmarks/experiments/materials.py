"""What the experiments work on: one base, in as many quantisations as are asked for, and the data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.experiments.parameters import lora_of, parameters
from benchmarks.experiments.settings import Settings
from brainstacks.base_model import BaseModel, identify_base
from brainstacks.config import Quantization, StackConfig
from brainstacks.durable import atomic_write, make_directory
from brainstacks.layers.hooks import CompositionHooks
from training.data.domains import prepare
from training.data.encoding import Example, encode
from training.recipe.settings import ComputeMode, StackRecipe, require
from training.rounds.compute import Compute, choose, load_as_stored
from training.rounds.device import take_device
from training.rounds.workshop import Workshop
from training.runs.log import NoLog
from training.runs.processes import Processes
from training.runs.signals import StopRequest
from training.runs.stored import read_as

SPLITS = ("train", "selection", "validation")


class Materials:
    """The base, loaded once in each quantisation that is asked for, and the examples of every domain.

    Args:
        data: directory with `<domain>/{train,validation}.jsonl`.
        kept: the studies' directory, which says what bases compute in, once one was loaded.
        stop: asked after every step of a training.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: as `take_device`, `prepare` and `choose`; a domain has no record of some split that
            fits; or what is in `kept` was computed in another dtype.
    """

    def __init__(
        self, settings: Settings, data: Path, kept: Path, stop: StopRequest, device: str = "auto"
    ) -> None:
        self.settings = settings
        self._data, self._kept, self._device = data, kept, device
        self._processes = Processes(take_device(device))
        self.identity = identify_base(settings.base)
        self.data = prepare(settings.recipe(), data)
        self.stop = stop
        self.workshop = cache(self._workshop)
        self.tokenizer = self.workshop(settings.quantization).base.chat_tokenizer()
        self.examples = {(d, split): self._examples(d, split) for d in settings.domains for split in SPLITS}
        empty = sorted({d for (d, _), examples in self.examples.items() if not examples})
        require(
            not empty,
            f"{', '.join(empty)}: a split has no record of {settings.max_tokens} tokens; raise max_tokens",
        )
        self.digests = {place: digest([*map(astuple, found)]) for place, found in self.examples.items()}

    def on(self, base: str) -> Materials:
        """The same data on another base."""
        return Materials(replace(self.settings, base=base), self._data, self._kept, self.stop, self._device)

    def _workshop(self, quantization: Quantization) -> Workshop:
        """The base in this quantisation, open to gradients, with hooks."""
        device = str(self._processes.device)
        recipe = replace(self.settings.recipe(), quantization=quantization)
        base = load_as_stored(recipe, device)
        base = self._compute(base, recipe.compute).of(base)
        hooks = CompositionHooks(base.sites)
        hooks.attach()
        return Workshop(self._processes, base, hooks, NoLog(), self.stop)

    def _compute(self, base: BaseModel, asked: ComputeMode) -> Compute:
        """What the first start chose for bases that look like this one.

        Chosen anew it might be another, of a random base beside the one that it is compared with as of a run
        that goes on: some contestants would compute in bfloat16, and some in float32.
        """
        looks = [self.identity.dims, self.identity.layers, base.quantization, base.dtype_name]
        path = self._kept / f"compute-{digest(looks)[:20]}.json"
        begun = read_as(path, str)
        found = choose(base, asked, begun, backward=True)
        require(
            begun in (None, found.dtype),
            f"compute is {asked}, and what is kept was computed in {begun}; give another --run",
        )
        if begun is None:
            make_directory(self._kept)
            atomic_write(path, json.dumps(found.dtype) + "\n")
        return found

    def _examples(self, domain: str, split: str) -> list[Example]:
        """The first records of a split that fit, as many as the settings say."""
        most = self.settings.records if split == "train" else getattr(self.settings, split)
        return encode(getattr(self.data[domain], split), self.tokenizer, self.settings.max_tokens)[:most]

    def validation(self, domain: str) -> list[Example]:
        return self.examples[domain, "validation"]

    def config(self, stack: StackRecipe) -> StackConfig:
        """The shape on this base."""
        return stack.config(self.identity.layers)

    def lora(self, stacks: int = 1) -> StackRecipe:
        """The LoRA with as many trainable parameters as so many stacks, gates and noise weights included."""
        stack, dims, layers = self.settings.stack, self.identity.dims, self.identity.layers
        return lora_of(stacks * parameters(stack, dims, layers).total, stack.alpha, dims, layers)

    def parameters(self, stack: StackRecipe) -> int:
        """All trainable parameters of one round (count)."""
        return parameters(stack, self.identity.dims, self.identity.layers).total


def digest(facts: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
