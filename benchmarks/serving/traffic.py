"""What requests ask for: prompts, and mixes of compositions from all alike to all different."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

from brainstacks.base_model import BaseModel
from brainstacks.tokenizer import ChatTokenizer

Composition = Mapping[str, float]

WEIGHTS = (1.0, 0.85, 0.7, 0.55)
"""Of the four active stacks: above the gate, none of them equal."""

QUESTIONS = (
    "What are some fun things to do on a rainy weekend with two children who do not like to stay indoors?",
    "Write a Python function that returns the largest of a list of numbers, and explain how it works.",
    "Tom has 3 boxes with 12 pencils each. He gives away 7 pencils. How many pencils does he have left?",
    "What are the symptoms of asthma, and when should somebody who has it go and see a doctor?",
    "Facts: spiders have eight legs, insects have six legs. Question: is a spider an insect, and why?",
)
"""One for each domain of the demo registry."""


def random_prompt(vocab_size: int, length: int, seed: int) -> tuple[int, ...]:
    """Token ids drawn evenly."""
    return tuple(random.Random(seed).choices(range(vocab_size), k=length))


def random_prompts(vocab_size: int, length: int, rows: int, seed: int) -> list[tuple[int, ...]]:
    """One for each row; the first ones of a larger batch are those of a smaller one."""
    return [random_prompt(vocab_size, length, seed + row) for row in range(rows)]


def question(number: int) -> str:
    """One of `QUESTIONS`; no two numbers give the same text."""
    return f"Request {number}. {QUESTIONS[number % len(QUESTIONS)]}"


def text_prompt(tokenizer: ChatTokenizer, length: int, number: int) -> tuple[int, ...]:
    """The first `length` ids of that question, asked again and again."""
    return tuple(itertools.islice(itertools.cycle(tokenizer.encode(question(number))), length))


class Prompts:
    """Prompts that no earlier one begins with; text where the base has a tokenizer, so that routes differ."""

    def __init__(self, base: BaseModel, seed: int) -> None:
        self._vocab = base.vocab_size
        self._tokenizer = base.chat_tokenizer() if base.tokenizer is not None else None
        self._numbers = itertools.count(seed)

    def next(self, length: int) -> tuple[int, ...]:
        number = next(self._numbers)
        if self._tokenizer is None:
            return random_prompt(self._vocab, length, number)
        return text_prompt(self._tokenizer, length, number)


def adjacent(domains: Sequence[str]) -> Composition:
    """Four active stacks, neighbours in the registry."""
    return dict(zip(domains[: len(WEIGHTS)], WEIGHTS, strict=True))


def apart(domains: Sequence[str]) -> Composition:
    """Four active stacks, as far apart in the registry as they can be."""
    step = (len(domains) - 1) // (len(WEIGHTS) - 1)
    return dict(zip(domains[:: max(step, 1)], WEIGHTS, strict=False))


def reweighted(composition: Composition, rows: int, seed: int) -> list[Composition]:
    """`rows` compositions of the same stacks, each with weights of its own."""
    draw = random.Random(seed)
    return [{domain: draw.uniform(0.3, 1.0) for domain in composition} for _ in range(rows)]


def distinct(domains: Sequence[str], rows: int, seed: int) -> list[Composition]:
    """`rows` compositions of four stacks each; no two have the same four while that is possible."""
    choices = list(itertools.combinations(domains, len(WEIGHTS)))
    random.Random(seed).shuffle(choices)
    return [
        dict(zip(chosen, WEIGHTS, strict=True)) for chosen in itertools.islice(itertools.cycle(choices), rows)
    ]


def zipf(count: int, draws: int, seed: int) -> list[int]:
    """`draws` of 0..count-1, item k with a probability in proportion to 1 / (k + 1)."""
    return random.Random(seed).choices(range(count), [1 / (k + 1) for k in range(count)], k=draws)
