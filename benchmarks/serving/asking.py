"""One request at a time, run to its end; and prompts for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from time import perf_counter

from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import Reply, advance, request
from brainstacks.base_model import BaseModel
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest, RoutedEvent, Routing, TextEvent
from brainstacks.errors import BrainstacksError


@dataclass(frozen=True)
class Answer:
    """One request's beginning.

    Attributes:
        first_token_s: seconds from the request to its first token.
        tokens: all that were generated.
    """

    first_token_s: float
    routing: Routing
    tokens: tuple[int, ...]

    @property
    def router_share(self) -> float:
        """Of the time to first token."""
        return self.routing.router_ms / 1000 / self.first_token_s


def ask(
    engine: StepEngine, prompt: tuple[int, ...], composition: CompositionRequest, tokens: int = 1
) -> Answer:
    """Run one request to its end."""
    first: list[float] = []
    routings: list[Routing] = []
    generated: list[int] = []
    errors: list[BrainstacksError] = []

    def sink(reply: Reply) -> None:
        if isinstance(reply, BrainstacksError):
            errors.append(reply)
        elif isinstance(reply, RoutedEvent):
            routings.append(reply.routing)
        elif isinstance(reply, TextEvent):
            first.append(perf_counter())
            generated.extend(reply.token_ids)

    start = perf_counter()
    engine.add(request("prompt", prompt, tokens, composition), sink)
    while engine.has_work:
        advance(engine)
    if errors:
        raise errors[0]
    return Answer(first[0] - start, routings[0], tuple(generated))


class Prompts:
    """Prompts that no earlier one begins with; text where the base has a tokenizer, so that routes differ."""

    def __init__(self, base: BaseModel, seed: int) -> None:
        self._vocab = base.vocab_size
        self._tokenizer = base.chat_tokenizer() if base.tokenizer is not None else None
        self._numbers = count(seed)

    def next(self, length: int) -> tuple[int, ...]:
        number = next(self._numbers)
        if self._tokenizer is None:
            return traffic.random_prompt(self._vocab, length, number)
        return traffic.text_prompt(self._tokenizer, length, number)
