"""vLLM with one LoRA for every row, where it is installed: it is no dependency of this project."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.instruments.timing import Run, SelfTimed
from benchmarks.peers.peft_loras import with_loras
from brainstacks.base_model import BaseModel

PACKAGE = "vllm"
MEMORY = 0.3
"""Of the device's, all of which it would take otherwise."""


class VllmPeer:
    """vLLM in bfloat16, with a random LoRA on all seven projections.

    Args:
        base: unquantised, on the CPU; PEFT wraps it in place.
        directory: where the base and the LoRA are written for vLLM.
        rows: most of a batch.
        context: most tokens of a row.
    """

    def __init__(
        self, base: BaseModel, directory: Path, *, rows: int, context: int, rank: int = 64, seed: int = 0
    ) -> None:
        vllm = importlib.import_module(PACKAGE)
        requests = importlib.import_module(f"{PACKAGE}.lora.request")
        base.model.to(torch.bfloat16).save_pretrained(directory / "base")
        torch.manual_seed(seed)
        adapted = with_loras(base, r=rank, lora_alpha=rank, init_lora_weights=False)
        adapted.save_pretrained(directory / "lora")
        self._sampling = vllm.SamplingParams
        self._lora = requests.LoRARequest("lora", 1, str(directory / "lora"))
        self._model = vllm.LLM(
            model=str(directory / "base"),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=context,
            max_num_seqs=rows,
            gpu_memory_utilization=MEMORY,
            enable_prefix_caching=False,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=rank,
            seed=seed,
        )

    def batch(self, prompts: Sequence[Sequence[int]]) -> SelfTimed:
        """Greedy. A batch ends at once and tells no steps: its prefill is what one token takes."""

        def run(tokens: int) -> Run:
            first_token_s, _ = self._generate(prompts, 1)
            seconds, texts = self._generate(prompts, tokens)
            return Run(texts, first_token_s, seconds - first_token_s, (tokens - 1) * len(prompts))

        return SelfTimed(run)

    def _generate(
        self, prompts: Sequence[Sequence[int]], tokens: int
    ) -> tuple[float, tuple[tuple[int, ...], ...]]:
        """Seconds, and each row's tokens."""
        sampling = self._sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        started = perf_counter()
        answers = self._model.generate(asked, sampling, lora_request=self._lora, use_tqdm=False)
        seconds = perf_counter() - started
        return seconds, tuple(tuple(answer.outputs[0].token_ids) for answer in answers)
