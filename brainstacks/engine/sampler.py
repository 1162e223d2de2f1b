"""Logits -> the next token of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brainstacks.engine.request import SamplingParams


def new_generator(seed: int | None) -> torch.Generator:
    """A request's own generator, on the CPU, so that one seed means the same on every device."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % 2**63)
    return generator


def adjust(
    logits: Tensor,
    params: SamplingParams,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    forbidden: Sequence[int],
) -> Tensor:
    """Penalties, bias and forbidden tokens, in OpenAI's and vLLM's order.

    Args:
        logits: [V] float32.
        forbidden: tokens that must not be chosen (the ends of text before `min_tokens`).

    Returns:
        [V] float32; `logits` itself when there is nothing to do.
    """
    touched = (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or params.logit_bias
        or forbidden
    )
    if not touched:
        return logits
    logits = logits.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt_ids, *output_ids}), dtype=torch.long, device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    if output_ids and (params.presence_penalty or params.frequency_penalty):
        counts = torch.bincount(torch.tensor(list(output_ids)), minlength=logits.shape[0]).to(logits.device)
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if forbidden:
        logits[list(forbidden)] = float("-inf")
    return logits


def choose(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """One token from adjusted logits [V]: greedy at temperature 0, else temperature, top-k, min-p, top-p."""
    if params.temperature == 0.0:
        return int(logits.argmax())
    # The draw is in float64 on the CPU: small tails keep their mass, and every device draws the same.
    probabilities = (logits.double().cpu() / params.temperature).softmax(-1)
    ordered, indices = probabilities.sort(descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if params.top_k > 0:
        keep[params.top_k :] = False
    if params.min_p > 0.0:
        keep &= ordered >= params.min_p * ordered[0]
    if params.top_p < 1.0:
        kept = ordered * keep
        # A token stays while the mass before it is below top_p, so the first always stays.
        keep &= (kept.cumsum(-1) - kept) < params.top_p * kept.sum()
    keep[0] = True
    return int(indices[torch.multinomial(ordered * keep, 1, generator=generator)])
