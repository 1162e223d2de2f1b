"""Engines of the sections: every budget is said, as several processes share a GPU's memory."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.serving.engine_batch import Reply, advance, fixed
from benchmarks.serving.traffic import Composition
from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import GenerationRequest, SamplingParams, TextEvent, TokenLogprob
from brainstacks.errors import BrainstacksError
from brainstacks.stacks.manifest import StackVersion
from brainstacks.stacks.registry import Registry


def engine(base: BaseModel, registry: Registry, **limits: Any) -> StepEngine:
    """With room on the device for all stacks of `registry`, and for `kv_cache_tokens`.

    Args:
        limits: of `EngineConfig`.

    Raises:
        BrainstacksError: a stack cannot be served.
    """
    files = [v.bytes for v in registry.snapshot().versions() if isinstance(v, StackVersion)]
    per_number = base.dtype.itemsize / 2  # files are bfloat16
    stacks = int(1.1 * per_number * sum(files)) + (64 << 20)
    config = EngineConfig(
        **{
            "device_stack_bytes": stacks,
            "host_stack_bytes": 8 << 30,
            "kv_cache_tokens": 8192,
            "max_prefill_tokens": 512,
            "prefix_caching": False,
            **limits,
        }
    )
    gc.collect()  # engines that are gone: no graph of theirs is to be given back while another is captured
    made = StepEngine(base, registry, config)
    if made.serving.stack_problems:
        raise BrainstacksError("a stack cannot be served: " + "; ".join(made.serving.stack_problems))
    return made


@dataclass(frozen=True)
class Text:
    """What a request was answered, greedily.

    Attributes:
        ids: tokens.
        logprobs: of each, nats.
        leads: by how many nats each was likelier than the next one.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    leads: tuple[float, ...]

    @classmethod
    def of(cls, chosen: Sequence[TokenLogprob]) -> Text:
        return cls(
            tuple(one.token_id for one in chosen),
            tuple(one.logprob for one in chosen),
            tuple(one.top[0].logprob - one.top[1].logprob for one in chosen),
        )


@dataclass(frozen=True)
class Question:
    """A prompt, and what it is composed of."""

    prompt: tuple[int, ...]
    weights: Composition


def answers(of: StepEngine, questions: Sequence[Question], tokens: int) -> list[Text]:
    """All asked at once.

    Raises:
        BrainstacksError: one failed.
    """
    replies: list[list[Reply]] = [[] for _ in questions]

    def sink(row: int, reply: Reply) -> None:
        replies[row].append(reply)

    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, logprobs=2)
    for row, question in enumerate(questions):
        asked = GenerationRequest(f"row-{row}", question.prompt, sampling, fixed(question.weights))
        of.add(asked, partial(sink, row))
    while of.has_work:
        advance(of)
    for error in (reply for row in replies for reply in row if isinstance(reply, BrainstacksError)):
        raise error
    return [
        Text.of([one for reply in row if isinstance(reply, TextEvent) for one in reply.logprobs])
        for row in replies
    ]
