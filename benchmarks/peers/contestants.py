"""The peers as contestants of decode: those that were asked for, are installed, and can run here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.instruments.decode_case import (
    GENERATE_BFLOAT16,
    GENERATE_FLOAT32,
    LLAMA_CPP,
    LLAMA_CPP_FOUR,
    PEFT_FOUR,
    PEFT_MIXED,
    PEFT_ONE,
    SHUTTLE,
    SHUTTLE_NO_COPIES,
)
from benchmarks.instruments.timing import Contestant, SelfTimed, say
from benchmarks.peers import available, gguf_lora, llama_cpp
from benchmarks.peers.peft_loras import PeftPeer
from benchmarks.peers.shuttle_baseline import ShuttleModel, shuttle_stream
from benchmarks.peers.transformers_generate import dequantized, transformers_batch
from brainstacks.base_model import BaseModel
from brainstacks.stacks.registry import Registry
from training.rounds.compute import choose

PEERS = ("transformers", "peft", "published", "llama.cpp")
"""What the engine may be compared with."""


def in_faster_dtype(base: BaseModel) -> BaseModel:
    """`base`, freshly loaded; a native one, which peers hold as plain linears, in bfloat16 or in float32,
    whichever this machine multiplies faster."""
    if base.quantization != "native":
        return base
    narrow = replace(base, model=base.model.to(torch.bfloat16), dtype=torch.bfloat16)
    return choose(narrow, "auto", backward=False).of(narrow)


class Peers:
    """Each on a base of its own; a line says which is left out.

    Args:
        load: gives a fresh copy of the base at each call.
        base: as `load` gives it.
        chosen: of `PEERS`; llama.cpp is given as its file.
        registry: where the published scheme loads its stacks from.
        four: domain -> weight, of the stacks that it composes; llama.cpp scales as many adapters by these
            weights.
        gguf: the base's file for llama.cpp; None leaves it out.
        directory: where the adapters of llama.cpp are written, and stay.
    """

    def __init__(
        self,
        load: Callable[[], BaseModel],
        base: BaseModel,
        chosen: frozenset[str],
        registry: Registry,
        four: Mapping[str, float],
        gguf: Path | None,
        directory: Path,
    ) -> None:
        self._device = base.device
        self._four = four
        self._gguf = gguf
        self._models: dict[str, Any] = {}
        if "transformers" in chosen:
            self._models[GENERATE_FLOAT32] = dequantized(load(), torch.float32)
            self._models[GENERATE_BFLOAT16] = dequantized(load(), torch.bfloat16)
        self._shuttle = ShuttleModel(in_faster_dtype(load()), registry) if "published" in chosen else None
        self._peft: PeftPeer | None = None
        if "peft" in chosen:
            if available.installed("peft"):
                self._peft = PeftPeer(in_faster_dtype(load()))
            else:
                say("PEFT is not installed (pip install peft): its contestants are left out")
        self._adapters: list[Path] = []
        if gguf is not None:
            self._adapters = gguf_lora.write_random_loras(directory, base.identity, len(four))

    def contestants(self, prompts: Sequence[Sequence[int]]) -> dict[str, Contestant]:
        """Those of this process."""
        found = {
            name: transformers_batch(model, prompts, self._device) for name, model in self._models.items()
        }
        if self._peft is not None:
            found[PEFT_ONE] = self._peft.summed(prompts, 1)
            found[PEFT_FOUR] = self._peft.summed(prompts, 4)
            if len(prompts) > 1:
                found[PEFT_MIXED] = self._peft.mixed(prompts)
        if self._shuttle is not None:
            found[SHUTTLE] = shuttle_stream(self._shuttle, prompts[0], self._four)
            if self._device.type == "cpu":
                found[SHUTTLE_NO_COPIES] = shuttle_stream(
                    self._shuttle, prompts[0], self._four, always_copy=False
                )
        return found

    @contextmanager
    def llama_cpp(
        self, prompts: Sequence[Sequence[int]], tokens: int
    ) -> Iterator[tuple[dict[str, SelfTimed], str]]:
        """llama.cpp's contestants while its process runs, and what it says of itself."""
        if not self._adapters:
            yield {}, ""
            return
        settings = llama_cpp.Settings(
            str(self._gguf),
            torch.get_num_threads(),
            slots=len(prompts),
            context=llama_cpp.context_for(len(prompts[0]), tokens),
            adapters=tuple(map(str, self._adapters)),
        )
        with llama_cpp.LlamaCpp(settings) as server:
            found = {
                LLAMA_CPP: server.contestant(prompts),
                LLAMA_CPP_FOUR: server.contestant(prompts, tuple(self._four.values())),
            }
            yield found, server.system
