"""Small training records and examples, and the plain loss of an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.tiny import PlainStack, plain_logits, tiny_model
from training.data.encoding import Example
from training.data.records import Message, Record


def record(prompt: str, response: str, name: str = "r") -> Record:
    """One question of a user and its answer."""
    return Record(name, (Message("user", prompt),), response)


def example(prompt: Sequence[int], response: Sequence[int], name: str = "e") -> Example:
    return Example(name, tuple(prompt), tuple(response))


def random_examples(count: int, seed: int = 0) -> list[Example]:
    """Examples of varied lengths, all tokens random."""
    random = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=random))
        return [int(i) for i in torch.randint(0, 256, (length,), generator=random)]

    return [example(draw(1, 9), draw(1, 12), f"e{i}") for i in range(count)]


def learnable_examples(count: int, text: bytes = b"yes it is", seed: int = 0) -> list[Example]:
    """Random prompts that all have one and the same answer."""
    return [example(e.prompt, text, e.id) for e in random_examples(count, seed)]


def plain_nll(example: Example, stacks: Sequence[PlainStack]) -> float:
    """Summed NLL of the answer, by the plain oracle on the tiny Llama with `stacks`."""
    logprobs = plain_logits(tiny_model(), [*example.prompt, *example.response], stacks).log_softmax(-1)
    first = len(example.prompt) - 1
    return -sum(float(logprobs[first + i, token]) for i, token in enumerate(example.response))
