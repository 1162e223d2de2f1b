"""A sampler of eight tokens, and rows to sample with it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from brainstacks.engine.completion import Completion
from brainstacks.engine.request import GenerationRequest, SamplingParams
from brainstacks.engine.sampling.sampler import Sampled, Sampler
from brainstacks.errors import BrainstacksError

END = 2
SAMPLER = Sampler(None, (END,))
LOGITS = torch.tensor([1.2, -0.4, 2.0, 0.3, 1.9, -3.0, 0.0, 0.8])
GREEDY = SamplingParams(temperature=0.0)


def completion(
    params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = (), seed: int | None = 0
) -> Completion:
    request = GenerationRequest("r", tuple(prompt), params)
    state = SAMPLER.new_state(params, prompt, seed)
    return Completion(request, 0, state, None, output_ids=list(output))


def tokens(results: Sequence[Sampled | BrainstacksError]) -> list[int]:
    assert all(isinstance(r, Sampled) for r in results)
    return [r.token for r in results if isinstance(r, Sampled)]


def sample(
    logits: Tensor, rows: Sequence[Completion], *, wait: bool = True
) -> list[Sampled | BrainstacksError]:
    return SAMPLER.start(logits, rows, wait=wait).finish()


def next_token(logits: Tensor, one: Completion) -> int:
    (token,) = tokens(sample(logits[None], [one]))
    return token


class Given(Random):
    """Gives `number` for ever."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self._number = number

    def random(self) -> float:
        return self._number


def draw(
    logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float], *, wait: bool = True
) -> list[int]:
    """The tokens of rows whose generators give `uniforms`."""
    rows = [completion(p) for p in params]
    for row, uniform in zip(rows, uniforms, strict=True):
        row.sampling_state.random = Given(uniform)
    return tokens(sample(logits, rows, wait=wait))


def random_logits(rows: int, vocab: int, seed: int, *, scale: float = 1.0, ties: bool = False) -> Tensor:
    logits = scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    return logits.bfloat16().float() if ties else logits
