"""The routing signature of a domain: made at the end of its stack's training, of its own prompts alone.

    c     the mean of prompts of no domain: `NEUTRAL`, the same for every domain
    y     each of the domain's prompts, as two unit vectors from c
    m, V  mean and first K principal directions of y, with variances v; what is left has the variance n
    S     V sqrt(1 - n / v): the distance under a probabilistic PCA of y, times sqrt(n)

mu and sigma are of the distances of prompts to what the other folds gave: a prompt is always nearer to what
was made of itself, or of its like: each prompt counts once, and a fold is of neighbours, as the turns of a
conversation are. `brainstacks/routing/signature.py` says what is computed with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import Features, Quantization, SignatureConfig
from brainstacks.errors import ConfigError
from brainstacks.routing.features import mixed_hidden_states, pad_prompts
from brainstacks.routing.signature import LEAST_SIGMA, Signature, distances, pooled, seen_from
from training.data.batches import TOKENS, within_budget
from training.data.encoding import Example, encode
from training.data.records import Message, Record
from training.progress import tracked

DIRECTIONS = 8
"""K; each takes 2d numbers of the file."""

ROUNDING = 0.16
"""What int8 activations add to a distance, in quadrature: so much it was on the demo's base. Prompts that are
all but alike are nearer to each other than that, and a server that rounds would not know them."""

FOLDS = 4

LEAST_PROMPTS = 8
"""Fewer that differ tell nothing of how prompts do, and no signature is made."""

MOST_PROMPTS = 256
"""More change little; each costs a pass of the base."""

NEUTRAL = (
    "Hello!",
    "What do you think?",
    "Write a short story about a lost key.",
    "List three colours.",
    "12 + 30",
    "def main():",
    "Translate this sentence into French.",
    "Why?",
    "The train leaves at nine.",
    "Name: Anna, Age: 31, City: Rome",
    "Is that true or false?",
    "Explain how it works.",
    "Summarise the text below in one sentence.",
    "Thank you, that is all.",
    "a b c d e f g",
    "What happened in the year 1900?",
)
"""Prompts of no domain, of many forms."""

Prompt = tuple[int, ...]
"""Token ids."""


class NoSignature(ConfigError):
    """Of these prompts on this base none is made; says why."""


def make_signature(
    base: BaseModel, examples: Sequence[Example], sequence_length: int = SignatureConfig.sequence_length
) -> Signature:
    """Of the prompts of a domain's examples, by the base alone; no stack may be composed.

    Args:
        examples: in the order of their split, in which prompts that begin alike are neighbours.
        sequence_length: tokens of a prompt that are read; as many as the router's that it is to serve beside.

    Raises:
        NoSignature: the prompts are too few, or all alike; or the base reads none of `NEUTRAL`.
    """
    prompts = different_prompts(examples, sequence_length)
    answered = [Record(str(i), (Message("user", text),), "Yes.") for i, text in enumerate(NEUTRAL)]
    neutral = encode(answered, base.chat_tokenizer(), base.max_context)
    if not neutral:
        raise NoSignature("the base's chat template refuses every prompt that signatures are measured from")
    return signature_of(
        prompt_vectors(base, [e.prompt for e in neutral], sequence_length),
        prompt_vectors(base, _some(prompts), sequence_length),
        base.quantization,
        sequence_length,
    )


def check_features(sequence_length: int, served: Features, where: str) -> None:
    """Refuse a signature that would not be used beside a router.

    Args:
        sequence_length: the recipe's.
        served: what `where`, which is a router, reads.

    Raises:
        ConfigError: signatures are of other features.
    """
    made = (sequence_length, SignatureConfig.mid_weight, SignatureConfig.last_weight)
    if made != served:
        raise ConfigError(
            f"{where} reads {served[0]} tokens of a prompt, and mixes hidden states by {served[1]:g} and "
            f"{served[2]:g}; signatures of {made[0]} tokens, by {made[1]:g} and {made[2]:g}, would not be "
            f"used beside it. Set router.sequence_length: {served[0]} in the recipe, or publish a router "
            "that reads the same"
        )


def different_prompts(examples: Sequence[Example], sequence_length: int) -> list[Prompt]:
    """Each prompt once, as far as it is read. Raises NoSignature: they are too few."""
    prompts = list(dict.fromkeys(example.prompt[:sequence_length] for example in examples))
    _check_count(len(prompts))
    return prompts


def _check_count(prompts: int) -> None:
    if prompts < LEAST_PROMPTS:
        raise NoSignature(
            f"{prompts} different training prompts fit, and a signature takes {LEAST_PROMPTS}; give more data"
        )


def _some(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """At most `MOST_PROMPTS` of them, from everywhere."""
    return prompts[:: -(-len(prompts) // MOST_PROMPTS)]


@torch.no_grad()
def prompt_vectors(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    sequence_length: int = SignatureConfig.sequence_length,
) -> Tensor:
    """What of prompts is compared (`routing.signature.pooled`), by the code that serves.

    Returns:
        [n, 2, d] float32, on the CPU.
    """
    features = SignatureConfig(base.identity.hidden_size, 1, 1, base.quantization, sequence_length)
    found = torch.zeros(len(prompts), 2, features.width)
    batches = within_budget([min(len(p), features.sequence_length) for p in prompts], TOKENS)
    with tracked(batches, "reading prompts", "batches") as each:
        for rows in each:
            ids, mask = pad_prompts([prompts[i] for i in rows], features.sequence_length, base.device)
            mixed = mixed_hidden_states(
                base.model, ids, mid_weight=features.mid_weight, last_weight=features.last_weight
            )
            found[rows] = pooled(mixed, mask).cpu()
    return found


def signature_of(
    neutral: Tensor,
    prompts: Tensor,
    quantization: Quantization,
    sequence_length: int = SignatureConfig.sequence_length,
) -> Signature:
    """The same of vectors [n, 2, d] float32 of neutral prompts and of the domain's.

    Raises:
        NoSignature: they are not finite, or the domain's are too few or all alike.
    """
    count, _, width = prompts.shape
    _check_count(count)
    if not (neutral.isfinite().all() and prompts.isfinite().all()):
        raise NoSignature("the base's hidden states of a prompt are not finite; is it damaged?")
    centre = neutral.mean(dim=0)
    seen = seen_from(centre, prompts)
    fold = torch.arange(count) * FOLDS // count
    held_out = torch.cat([_distances(seen[fold == f], *_fit(seen[fold != f])) for f in range(FOLDS)])
    sigma = held_out.std()
    if sigma < LEAST_SIGMA:
        raise NoSignature("its training prompts are all alike to the base; give prompts that differ")
    mean, spread = _fit(seen)
    calibration = as_served(float(held_out.mean()), float(sigma))
    config = SignatureConfig(width, len(spread), count, quantization, sequence_length)
    return Signature(config, centre, mean, spread, calibration)


def as_served(mu: float, sigma: float) -> Tensor:
    """Mean and standard deviation [2] of distances that a server may round or not: half way between."""
    half = (math.hypot(mu, ROUNDING) - mu) / 2
    return torch.tensor([mu + half, math.hypot(sigma, half)])


def _fit(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [2, d] and spread [K, 2, d] of unit vectors [n, 2, d]."""
    mean = seen.mean(dim=0)
    _, values, directions = torch.linalg.svd((seen - mean).flatten(1), full_matrices=False)
    free = len(seen) - 1  # so many directions can hold anything
    kept = max(1, min(DIRECTIONS, free // 2))
    variances = values[:free].square() / free
    noise = variances[kept:].sum() / (directions.shape[1] - kept)
    scale = (1 - noise / variances[:kept].clamp(min=1e-12)).clamp(min=0).sqrt()
    return mean, (scale[:, None] * directions[:kept]).unflatten(1, mean.shape)


def _distances(seen: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Of [n, 2, d] -> [n]."""
    return distances((seen - mean)[:, None], spread[None])[:, 0]
