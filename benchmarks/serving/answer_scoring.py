"""Answers scored through the engine, as a client scores a prompt: the log-probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from benchmarks.instruments.timing import Clock
from benchmarks.serving.engine_batch import Reply, advance
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest, GenerationRequest, RoutedEvent, SamplingParams
from brainstacks.errors import BrainstacksError, ConfigError
from brainstacks.tokenizer import ChatTokenizer
from training.data.encoding import Example, encode
from training.data.sources import load_directory


@dataclass(frozen=True)
class Score:
    """Of one answer.

    Attributes:
        nats: NLL, summed over the answer's tokens.
        seconds: that the request took.
    """

    nats: float
    seconds: float


def validation_examples(
    data: Path, tokenizer: ChatTokenizer, records: int, max_tokens: int
) -> dict[str, list[Example]]:
    """Domain -> the first `records` of its validation split, as `brainstacks-train evaluate` encodes them.

    Args:
        data: `<domain>/{train,validation}.jsonl`.
        max_tokens: of prompt and answer; a longer answer is cut.

    Raises:
        ConfigError: there is no domain, or one has no validation record that fits.
    """
    found: dict[str, list[Example]] = {}
    for directory in sorted(path for path in data.iterdir() if path.is_dir()):
        validation = load_directory(directory).validation or []
        found[directory.name] = encode(validation[:records], tokenizer, max_tokens)
        if not found[directory.name]:
            raise ConfigError(
                f"domain {directory.name!r} has no validation record that fits {max_tokens} tokens; give "
                "validation.jsonl, or more tokens"
            )
    if not found:
        raise ConfigError(f"{data.name!r} has no directory of a domain; it holds <domain>/validation.jsonl")
    return found


def score(engine: StepEngine, example: Example, clock: Clock = perf_counter) -> Score:
    """The answer's NLL after its prompt, with the base alone.

    Raises:
        BrainstacksError: the engine refused the request, or failed.
    """
    replies: list[Reply] = []
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    request = GenerationRequest(
        example.id, example.prompt + example.response, sampling, CompositionRequest("base")
    )
    start = clock()
    engine.check(request)
    engine.add(request, replies.append)
    while engine.has_work:
        advance(engine)
    seconds = clock() - start
    return Score(_nats(replies, len(example.response)), seconds)


def _nats(replies: Sequence[Reply], answer: int) -> float:
    for reply in replies:
        if isinstance(reply, BrainstacksError):
            raise reply
    (logprobs,) = (reply.prompt_logprobs for reply in replies if isinstance(reply, RoutedEvent))
    return -sum(entry.logprob for entry in (logprobs or ())[-answer:] if entry is not None)
