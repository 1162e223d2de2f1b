"""Which stack moved which token: a given text under compositions that differ by one stack.

The log-probability of each token under the base, under the composition, and under the composition without
each of its stacks; all of them are rows of the same steps. `composed - without[d]` is what stack d gave the
token beside the others; `composed - base` is what they gave together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brainstacks.engine.interface import Engine
from brainstacks.engine.request import (
    CompositionRequest,
    GenerationRequest,
    RoutedEvent,
    SamplingParams,
    StackRef,
    TokenLogprob,
)
from brainstacks.errors import Conflict, EngineFailure, InvalidRequest

ALWAYS = 2
"""Compositions of every text: the base, and all of its stacks."""

MOST_STACKS = 16
"""Of a composition whose stacks are taken out one by one."""


@dataclass(frozen=True)
class TokenAttribution:
    """Log-probabilities (nats) of one token of the completion, given all before it.

    Attributes:
        without: active domain -> under the composition without it.
    """

    token_id: int
    text: str
    base: float
    composed: float
    without: Mapping[str, float]


def variants(
    request_id: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    weights: Mapping[str, float],
    tenant: str = "",
) -> list[GenerationRequest]:
    """What to ask for: the base, the composition of `weights`, and that without each of its domains.

    Their ids hold a `#`, as no client's can.

    Args:
        weights: of the active domains alone.

    Raises:
        InvalidRequest: there is no completion, or more than `MOST_STACKS` domains are active.
    """
    if not completion_ids:
        raise InvalidRequest("the completion is empty; send at least one token", param="completion")
    if len(weights) > MOST_STACKS:
        raise InvalidRequest(
            f"{len(weights)} stacks are active; at most {MOST_STACKS} are taken out one by one; "
            "ask for fewer (routing.top)",
            param="routing",
        )
    each = [{}, weights, *({d: w for d, w in weights.items() if d != gone} for gone in weights)]
    return [
        GenerationRequest(
            f"{request_id}#{number}",
            (*prompt_ids, *completion_ids),
            SamplingParams(max_tokens=0, prompt_logprobs=0),
            CompositionRequest("fixed", chosen) if chosen else CompositionRequest("base"),
            tenant=tenant,
            recorded=False,
            response_start=len(prompt_ids),
        )
        for number, chosen in enumerate(each)
    ]


async def scores(engine: Engine, asked: Sequence[GenerationRequest]) -> list[RoutedEvent]:
    """The answers to `variants`, in their order. Raises what `engine.generate` does."""
    found: dict[int, RoutedEvent] = {}
    async for number, event in engine.generate(asked):
        if isinstance(event, RoutedEvent):
            found[number] = event
    return [found[number] for number in range(len(asked))]


def attribution(
    stacks: Mapping[str, StackRef], completion_tokens: int, events: Sequence[RoutedEvent]
) -> list[TokenAttribution]:
    """What the answers to `variants`, in their order, say of each token of the completion.

    Args:
        stacks: that the composition is made of, in the order of its weights.

    Raises:
        Conflict: one was replaced meanwhile.
    """
    for event in events:
        for domain, stack in event.routing.stacks.items():
            if stack != stacks[domain]:
                raise Conflict(f"the stack {domain} was replaced while its tokens were attributed; try again")
    base, composed, *without = [_last(event, completion_tokens) for event in events]
    return [
        TokenAttribution(
            token.token_id,
            token.text,
            base[i].logprob,
            token.logprob,
            {domain: logprobs[i].logprob for domain, logprobs in zip(stacks, without, strict=True)},
        )
        for i, token in enumerate(composed)
    ]


def _last(event: RoutedEvent, count: int) -> list[TokenLogprob]:
    """The log-probabilities of the prompt's last tokens."""
    found = [token for token in (event.prompt_logprobs or ())[-count:] if token is not None]
    if len(found) != count:
        raise EngineFailure("the engine gave no log-probabilities of the completion; try again")
    return found
