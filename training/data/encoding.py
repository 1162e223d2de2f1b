"""Records become examples: token ids in the very format that serving uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from brainstacks.errors import InvalidRequest
from brainstacks.tokenizer import ChatTokenizer
from training.data.records import Record
from training.progress import tracked

LEAST_RESPONSE = 8
"""Tokens that a prompt must leave for its response, or the record teaches next to nothing."""


@dataclass(frozen=True)
class Example:
    """Token ids of one record; the loss is taken on `response` alone.

    Attributes:
        prompt: chat template around the conversation, generation prompt included; of a base without one, the
            plain prompt.
        response: answer and the template's end of turn, as `ChatTokenizer.encode_answered` joins them.
        cut: the end of the response is left out.
    """

    id: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    cut: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode(records: Sequence[Record], tokenizer: ChatTokenizer, max_tokens: int) -> list[Example]:
    """All of `examples_of`."""
    with tracked(records, "encoding", "records") as each:
        return list(examples_of(each, tokenizer, max_tokens))


def examples_of(records: Iterable[Record], tokenizer: ChatTokenizer, max_tokens: int) -> Iterator[Example]:
    """Examples of at most `max_tokens`, in order: a long response is cut.

    A prompt that leaves no room is left out, and so is a conversation that the base's chat template refuses:
    one such row in a large data set must not end a run.
    """
    for record in records:
        size = sum(len(message.content.encode()) for message in record.messages)
        if size > (max_tokens - LEAST_RESPONSE) * tokenizer.longest_token:
            continue  # unencoded: a prompt of megabytes would take seconds
        try:
            prompt, response = tokenizer.encode_answered(
                [asdict(message) for message in record.messages], record.response
            )
        except InvalidRequest:
            continue
        room = max_tokens - len(prompt)
        if room >= LEAST_RESPONSE:
            cut = len(response) > room
            yield Example(record.id, tuple(prompt), tuple(response[:room]), cut)
