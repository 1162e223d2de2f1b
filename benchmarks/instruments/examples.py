"""Examples of a base: of texts, and drawn from a domain's files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from brainstacks.base_model import BaseModel
from training.data.encoding import Example, encode
from training.data.records import Message, Record
from training.data.sources import load_directory

MOST_TOKENS = 512
"""Of a prompt and its answer; longer prompts are left out."""


def examples_of(base: BaseModel, texts: Sequence[str]) -> list[Example]:
    """Each a user's message; what the base's template refuses, or is too long, is left out."""
    records = [Record(str(i), (Message("user", text),), "Yes.") for i, text in enumerate(texts)]
    return encode(records, base.chat_tokenizer(), MOST_TOKENS)


def drawn(
    base: BaseModel, directory: Path, train: int, validation: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """So many of a domain's training records, and of its validation records; or all, where they are fewer."""
    pool = load_directory(directory)
    chance = random.Random(seed)
    some = [
        chance.sample(records, min(count, len(records)))
        for records, count in ((pool.records, train), (pool.validation or [], validation))
    ]
    taken, shown = (encode(records, base.chat_tokenizer(), MOST_TOKENS) for records in some)
    return taken, shown
