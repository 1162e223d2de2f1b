"""Answers drawn from the model as it is composed at this moment, many at once.

The trainer draws its own: the engine would need a second copy of the base, packed for serving, a stack that
is written and loaded for every step, and computes in another arithmetic (on a CPU with int8 activations), so
that the answers would not quite be those of the policy whose gradient is taken. What is lost is its speed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from brainstacks.layers.hooks import CompositionHooks, DeltaSource


@torch.no_grad()
def draw(
    model: Any,
    hooks: CompositionHooks,
    sources: Sequence[DeltaSource],
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    ends: Collection[int],
    temperature: float,
    generator: torch.Generator | None = None,
) -> list[tuple[int, ...]]:
    """An answer to each of `prompts`, with the end token that it has.

    Args:
        sources: what composes the batch, a row for each prompt.
        limits: most tokens of each answer, 1 or more.
        ends: tokens that end one.
        temperature: 0.0 takes the likeliest token.
        generator: on the CPU, so that every device draws the same numbers; not needed at 0.0.
    """
    device, width = model.device, max(map(len, prompts))
    # Padding is on the left, so that all rows go on at the same place.
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, width - len(prompt) :] = True
    ids, mask = ids.to(device), mask.to(device)
    # The prompt's last token is the first that predicts one of the answer.
    responses = torch.zeros_like(mask)
    responses[:, -1] = True
    answers: list[list[int]] = [[] for _ in prompts]
    going, cache = set(range(len(prompts))), None
    while going:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with hooks.composed(*sources, responses=responses):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cache = output.past_key_values
        chosen = _chosen(output.logits[:, -1].float(), temperature, generator)
        for i in sorted(going):
            answers[i].append(chosen[i])
            if chosen[i] in ends or len(answers[i]) == limits[i]:
                going.remove(i)
        ids = torch.tensor(chosen, device=device)[:, None]
        responses = torch.ones_like(ids, dtype=torch.bool)
        mask = torch.cat([mask, responses], dim=1)
    return [tuple(answer) for answer in answers]


def _chosen(logits: Tensor, temperature: float, generator: torch.Generator | None) -> list[int]:
    """A token for each row of `logits` [B, V]."""
    if temperature == 0.0:
        found: list[int] = logits.argmax(-1).tolist()
        return found
    probabilities = (logits / temperature).softmax(-1).cpu()
    drawn: list[int] = torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist()
    return drawn
