"""One request at a time, run to its end: what was answered, or how likely a given answer was."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from benchmarks.serving.engine_batch import Reply, advance, request
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import (
    CompositionRequest,
    GenerationRequest,
    RoutedEvent,
    Routing,
    SamplingParams,
    TextEvent,
)
from brainstacks.errors import BrainstacksError
from training.data.encoding import Example


@dataclass(frozen=True)
class Answer:
    """What one request gave.

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


@dataclass(frozen=True)
class Score:
    """Of one answer.

    Attributes:
        nats: NLL, summed over the answer's tokens.
        seconds: that the request took.
    """

    nats: float
    seconds: float


def ask(
    engine: StepEngine, prompt: tuple[int, ...], composition: CompositionRequest, tokens: int = 1
) -> Answer:
    """A greedy answer of so many tokens.

    Raises:
        BrainstacksError: the engine failed.
    """
    replies = _run(engine, request("prompt", prompt, tokens, composition))
    (routing,) = (reply.routing for _, reply in replies if isinstance(reply, RoutedEvent))
    pieces = [(seconds, reply.token_ids) for seconds, reply in replies if isinstance(reply, TextEvent)]
    return Answer(pieces[0][0], routing, tuple(token for _, ids in pieces for token in ids))


def score(engine: StepEngine, example: Example) -> Score:
    """The answer's NLL after its prompt, with the base alone: as a client scores a prompt.

    Raises:
        BrainstacksError: the engine refused the request, or failed.
    """
    whole = GenerationRequest(
        example.id,
        example.prompt + example.response,
        SamplingParams(max_tokens=0, prompt_logprobs=0),
        CompositionRequest("base"),
    )
    start = perf_counter()
    engine.check(whole)
    replies = _run(engine, whole)
    seconds = perf_counter() - start
    (logprobs,) = (reply.prompt_logprobs for _, reply in replies if isinstance(reply, RoutedEvent))
    answer = (logprobs or ())[-len(example.response) :]
    return Score(-sum(entry.logprob for entry in answer if entry is not None), seconds)


def _run(engine: StepEngine, asked: GenerationRequest) -> list[tuple[float, Reply]]:
    """Each reply, and how many seconds after the request it came."""
    replies: list[tuple[float, Reply]] = []
    start = perf_counter()
    engine.add(asked, lambda reply: replies.append((perf_counter() - start, reply)))
    while engine.has_work:
        advance(engine)
    for _, reply in replies:
        if isinstance(reply, BrainstacksError):
            raise reply
    return replies
