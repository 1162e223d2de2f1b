"""Examples of a domain: prompt and response as token ids, in the very format that serving uses."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from brainstacks.errors import ConfigError
from brainstacks.tokenizer import ChatTokenizer

IGNORE = -100
"""Label of a position that no loss is taken at (torch's own convention)."""


@dataclass(frozen=True)
class Record:
    """One line of `{train,validation}.jsonl`."""

    id: str
    prompt: str
    response: str


@dataclass(frozen=True)
class Example:
    """Token ids of one record; the loss is taken on `response` alone.

    Attributes:
        prompt: chat template around the prompt, generation prompt included.
        response: answer and the template's end of turn.
    """

    id: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def read_jsonl(path: Path) -> list[Record]:
    """Records with `prompt` and `response`; other keys are ignored.

    Raises:
        ConfigError: the file is missing, or a line is no such object.
    """
    if not path.is_file():
        raise ConfigError(f"no data file {path}; give a JSONL file with `prompt` and `response` on each line")
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                records.append(Record(str(row.get("id", number)), row["prompt"], row["response"]))
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{path.name}, line {number}: not an object with `prompt` and `response`"
                ) from error
    return records


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode(records: Sequence[Record], tokenizer: ChatTokenizer, max_tokens: int) -> list[Example]:
    """Examples of at most `max_tokens`: a long response is cut, a prompt that leaves no room is left out."""
    examples = []
    for record in records:
        prompt = tokenizer.encode_chat([{"role": "user", "content": record.prompt}])
        response = [*tokenizer.encode(record.response, add_special_tokens=False), *tokenizer.end_of_turn_ids]
        room = max_tokens - len(prompt)
        if room >= 8:
            examples.append(Example(record.id, tuple(prompt), tuple(response[:room])))
    return examples


@dataclass(frozen=True)
class Batch:
    """Right-padded examples.

    Attributes:
        input_ids: [B, T] int64.
        attention_mask: [B, T] bool, true where a token is no padding.
        labels: [B, T] int64; the id that position t must predict (the token at t+1), or `IGNORE`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def collate(examples: Sequence[Example]) -> Batch:
    """Pad `examples` to the longest of them."""
    width = max(len(e) for e in examples)
    input_ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros(len(examples), width, dtype=torch.bool)
    labels = torch.full((len(examples), width), IGNORE, dtype=torch.long)
    for row, example in enumerate(examples):
        ids = torch.tensor([*example.prompt, *example.response])
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
        labels[row, len(example.prompt) - 1 : len(ids) - 1] = ids[len(example.prompt) :]
    return Batch(input_ids, mask, labels)


def by_length(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Batches for evaluation: examples of like length together, so that little is padding."""
    ordered = sorted(examples, key=len)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def shuffled(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Endless training batches: a new order each epoch, like lengths together within 8 batches."""
    rng = random.Random(seed)
    while True:
        order = list(examples)
        rng.shuffle(order)
        pool = 8 * batch_size
        batches: list[list[Example]] = []
        for start in range(0, len(order), pool):
            batches += by_length(order[start : start + pool], batch_size)
        batches = [b for b in batches if len(b) == batch_size] or batches
        rng.shuffle(batches)
        yield from batches
