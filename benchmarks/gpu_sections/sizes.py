"""Decoders of the sizes that people serve, few layers of them: in bfloat16 the cuda backend is the torch one.

It also compiles the kernels that figures will be taken of: those are then in Triton's cache.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_sections import bases, stacks
from benchmarks.gpu_sections.engines import engine
from benchmarks.gpu_sections.findings import Findings, Mismatch
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.decoders import GEMMA_3_12B, LLAMA_3_8B
from benchmarks.serving.engine_batch import advance, fixed
from benchmarks.serving.traffic import Composition, random_prompt
from brainstacks.config import Backend
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import GenerationRequest, RoutedEvent, SamplingParams
from brainstacks.errors import BrainstacksError

CHANGES: dict[str, dict[str, Any]] = {
    LLAMA_3_8B: {"num_hidden_layers": 2},
    GEMMA_3_12B: {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
}
SHARE = 0.25
"""Of what the stacks change, that two ways to compute in bfloat16 may differ by, root mean square."""


def sizes(setting: Setting, found: Findings) -> None:
    """Prompts that are read at once, and token by token, which are then decode rows."""
    for decoder, changes in CHANGES.items():
        for how, length, piece in (("prefill", 200, 512), ("decode", 40, 1)):
            with found.attempt(
                f"{decoder}, {changes['num_hidden_layers']} layers, {how}: cuda is torch"
            ) as told:
                told.append(_compare(setting, decoder, 3 if setting.rehearse else length, piece))


def _compare(setting: Setting, decoder: str, length: int, piece: int) -> str:
    """Of log-probabilities of a prompt that is read in pieces."""

    def served(backend: Backend) -> tuple[StepEngine, dict[str, float]]:
        base = bases.sized(setting, decoder, **CHANGES[decoder])
        registry = stacks.strong(setting, base.identity, count=2)
        limits = {"max_batch_size": 2, "max_context": 512, "max_prefill_tokens": piece}
        made = engine(base, registry, backend=backend, cuda_graphs=False, **limits)
        return made, dict.fromkeys(registry.snapshot().domains, 1.0)

    torchs, weights = served("torch")
    prompt = random_prompt(torchs.base.vocab_size, length, setting.seed)
    theirs, alone = (_scores(torchs, prompt, row) for row in (weights, {}))
    ours = _scores(served(setting.backend)[0], prompt, weights)
    apart, changed = (float((each - theirs).square().mean().sqrt()) for each in (ours, alone))
    if not apart < SHARE * changed:
        raise Mismatch(
            f"log-probabilities differ by {apart:.3g} nats, and stacks change them by {changed:.3g}"
        )
    return f"{apart:.1e} nats apart, of {changed:.1e} that stacks change"


def _scores(of: StepEngine, prompt: tuple[int, ...], weights: Composition) -> torch.Tensor:
    """Log-probabilities of the prompt's tokens but the first, nats."""
    replies: list[Any] = []
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    of.add(GenerationRequest("scored", prompt, sampling, fixed(weights)), replies.append)
    while of.has_work:
        advance(of)
    for error in (reply for reply in replies if isinstance(reply, BrainstacksError)):
        raise error
    (scored,) = (r.prompt_logprobs for r in replies if isinstance(r, RoutedEvent))
    return torch.tensor([one.logprob for one in scored or () if one is not None])
