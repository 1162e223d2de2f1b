"""One completion on its way through the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from brainstacks.engine.detokenizer import Detokenizer
from brainstacks.engine.request import FinishReason, GenerationRequest, TokenLogprob
from brainstacks.layers.bank import Key


@dataclass(eq=False)
class Sequence:
    """State of completion `index` of `request`.

    Attributes:
        weights: the composition that it runs with, by stack version; filled when the request is routed.
        slot: its place in the KV cache while it runs.
        computed: tokens whose keys and values are in the cache.
        output_ids: tokens chosen so far.
        cumulative_logprob: of `output_ids` (nats).
        reported: how many of `output_ids` an event has carried.
    """

    request: GenerationRequest
    index: int
    generator: torch.Generator
    detokenizer: Detokenizer | None
    weights: Mapping[Key, float] = field(default_factory=dict)
    slot: int | None = None
    computed: int = 0
    output_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    reported: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    @property
    def length(self) -> int:
        """Tokens known so far, prompt and completion."""
        return len(self.request.prompt_ids) + len(self.output_ids)

    @property
    def budget(self) -> int:
        """The most tokens that it can come to hold in the KV cache."""
        return len(self.request.prompt_ids) + self.request.sampling.max_tokens

    @property
    def pending(self) -> int:
        """Tokens that are known and not computed yet: 1 when it decodes, more when it prefills."""
        return self.length - self.computed

    def tokens(self, start: int, count: int) -> list[int]:
        """`count` token ids from position `start` on."""
        prompt = self.request.prompt_ids
        if start + count <= len(prompt):
            return list(prompt[start : start + count])
        return [*prompt[start:], *self.output_ids[max(0, start - len(prompt)) :]][:count]
