"""One completion on its way through the engine."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from brainstacks.engine.detokenizer import Detokenizer
from brainstacks.engine.request import FinishReason, GenerationRequest, Timing, TokenLogprob
from brainstacks.engine.sampling.grammar import Matcher


@dataclass(eq=False)
class Completion:
    """State of completion `index` of `request`.

    Attributes:
        sampling_state: the sampler's own, of this completion alone.
        matcher: its place in the request's grammar, if that has one.
        weights: the composition that it runs with: `layers.bank.Key` of a stack version -> weight.
        prompt_weights: that of its tokens before `response`, position of the first that is computed with
            `weights`: the last of the prompt.
        prefix_root: what the keys and values of its tokens depend on besides these; see `block_manager`.
        response_root: what those from `response` on depend on too; None where that is nothing more.
        arrival: place of its request in the order of arrival; completions of one request follow its index.
        leader: the first completion of the request, which computes the prompt for the others too; None for
            itself, and for one that computes the prompt on its own.
        scores_prompt: the log-probabilities of the prompt are still to be computed from its rows.
        paused: it gets no further tokens until its client has read those that it has.
        blocks: of KV memory, in the order of its tokens; empty while it waits.
        computed: tokens whose keys and values are in them.
        matched: prefixes that were found for it in the cache while it waits.
        remembered, prefix: how many of its full blocks the prefix cache knows, and the last one's identity.
        output_ids: tokens chosen so far.
        cumulative_logprob: of `output_ids` (nats).
        reported: how many of `output_ids` an event has carried.
        timing: when what happened to it.
    """

    request: GenerationRequest
    index: int
    sampling_state: Any
    detokenizer: Detokenizer | None
    matcher: Matcher | None = None
    weights: Mapping[Any, float] = field(default_factory=dict)
    prompt_weights: Mapping[Any, float] = field(default_factory=dict)
    response: int = 0
    prefix_root: Hashable = ()
    response_root: Hashable = None
    arrival: int = 0
    leader: Completion | None = None
    scores_prompt: bool = False
    paused: bool = False
    blocks: array[int] = field(default_factory=lambda: array("i"))
    computed: int = 0
    matched: list[Any] = field(default_factory=list)
    remembered: int = 0
    prefix: Hashable = None
    output_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    reported: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    timing: Timing = field(default_factory=Timing)

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

    @property
    def decodes(self) -> bool:
        """Its next row is the token that was chosen last, and nothing else."""
        return bool(self.output_ids) and self.computed == self.length - 1

    def tokens(self, start: int, count: int) -> list[int]:
        """`count` token ids from position `start` on."""
        prompt = self.request.prompt_ids
        if start >= len(prompt):
            return self.output_ids[start - len(prompt) : start - len(prompt) + count]
        if start + count <= len(prompt):
            return list(prompt[start : start + count])
        return [*prompt[start:], *self.output_ids[: start + count - len(prompt)]]
