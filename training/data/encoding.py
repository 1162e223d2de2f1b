"""Records become examples: token ids in the very format that serving uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from brainstacks.errors import InvalidRequest
from brainstacks.tokenizer import ChatTokenizer
from training.data.records import Record

LEAST_RESPONSE = 8
"""Tokens that a prompt must leave for its response, or the record teaches next to nothing."""


@dataclass(frozen=True)
class Example:
    """Token ids of one record; the loss is taken on `response` alone.

    Attributes:
        prompt: chat template around the conversation, generation prompt included.
        response: answer and the template's end of turn.
    """

    id: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode(records: Iterable[Record], tokenizer: ChatTokenizer, max_tokens: int) -> list[Example]:
    """All of `examples_of`."""
    return list(examples_of(records, tokenizer, max_tokens))


def examples_of(records: Iterable[Record], tokenizer: ChatTokenizer, max_tokens: int) -> Iterator[Example]:
    """Examples of at most `max_tokens`, in order: a long response is cut.

    A prompt that leaves no room is left out, and so is a conversation that the base's chat template refuses:
    one such row in a large data set must not end a run.
    """
    for record in records:
        try:
            prompt = tokenizer.encode_chat([asdict(message) for message in record.messages])
        except InvalidRequest:
            continue
        response = [*tokenizer.encode(record.response, add_special_tokens=False), *tokenizer.end_of_turn_ids]
        room = max_tokens - len(prompt)
        if room >= LEAST_RESPONSE:
            yield Example(record.id, tuple(prompt), tuple(response[:room]))
