"""Drive a `StepEngine` by hand and collect what each request got."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import Backend, EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import (
    CompositionRequest,
    Event,
    FinishReason,
    GenerationRequest,
    RoutedEvent,
    Routing,
    SamplingParams,
    TextEvent,
    TokenLogprob,
)
from brainstacks.errors import BrainstacksError
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from tests.tiny import PlainStack, publish_stack, random_stack, save_base, stack_config, write_router

DOMAINS = ("chat", "code", "math")
backend: Backend = "auto"
"""Of an engine whose test does not name one; the fixture `each_backend` sets it."""


@dataclass
class Served:
    """An engine over a tiny base with three domains, and what the oracle needs to imitate it.

    Attributes:
        late: domains whose stacks apply to the response alone.
    """

    engine: StepEngine
    base: BaseModel
    registry: Registry
    stacks: Mapping[str, StackTensors]
    late: Sequence[str] = ()

    def plain(self, composition: CompositionRequest, prompt_tokens: int = 1) -> list[PlainStack]:
        """The stacks and weights that `composition` means, for `tests.tiny.plain_logits`."""
        if composition.mode == "base":
            return []
        weights = composition.weights if composition.mode == "fixed" else dict.fromkeys(self.stacks, 1.0)
        return [
            (self.stacks[domain], weight, prompt_tokens - 1 if domain in self.late else 0)
            for domain, weight in weights.items()
        ]


def serve(
    directory: Path,
    family: str = "llama",
    *,
    tokenizer: bool = True,
    router: bool = False,
    device: str = "cpu",
    device_map: str | None = None,
    late: Sequence[str] = (),
    **limits: Any,
) -> Served:
    """A tiny base of `family` with three random stacks under `directory`."""
    saved = save_base(directory / "base", family, tokenizer=tokenizer)
    place = {"device": device} if device_map is None else {"device_map": device_map}
    base = load_base(saved, quantization="none", dtype=torch.float32, **place)
    registry = Registry(directory / "registry", create=True)
    stacks = {
        "chat": random_stack(base.identity.dims, 1, rounds=2),
        "code": random_stack(base.identity.dims, 2),
        "math": random_stack(base.identity.dims, 3, config=stack_config(rank=3, experts=4)),
    }
    for domain, stack in stacks.items():
        if domain in late:
            stack = replace(stack, config=replace(stack.config, applies="response"))
        publish_stack(registry, base.identity, domain, stack, directory)
    if router:
        registry.publish_router(write_router(directory / "router.safetensors", registry, base.identity))
    config = EngineConfig(**{"backend": backend, **limits})
    return Served(StepEngine(base, registry, config), base, registry, stacks, late)


@dataclass
class Answer:
    """Everything that one request's sink received."""

    events: list[Event | Routing | BrainstacksError] = field(default_factory=list)

    @property
    def errors(self) -> list[BrainstacksError]:
        return [e for e in self.events if isinstance(e, BrainstacksError)]

    @property
    def routed(self) -> RoutedEvent:
        """The one `RoutedEvent`, which came before everything else."""
        first, *rest = self.events
        if not isinstance(first, RoutedEvent) or any(isinstance(e, RoutedEvent) for e in rest):
            raise AssertionError(f"not exactly one RoutedEvent in front: {self.events}")
        return first

    def pieces(self, index: int = 0) -> list[TextEvent]:
        return [e for e in self.events if isinstance(e, TextEvent) and e.index == index]

    def text(self, index: int = 0) -> str:
        return "".join(e.text for e in self.pieces(index))

    def ids(self, index: int = 0) -> list[int]:
        return [i for e in self.pieces(index) for i in e.token_ids]

    def logprobs(self, index: int = 0) -> list[TokenLogprob]:
        return [p for e in self.pieces(index) for p in e.logprobs]

    def finish(self, index: int = 0) -> FinishReason | None:
        """The finish reason, which only the last event carries."""
        reasons = [e.finish_reason for e in self.pieces(index)]
        if any(reason is not None for reason in reasons[:-1]):
            raise AssertionError(f"text after the end: {reasons}")
        return reasons[-1] if reasons else None

    @property
    def over(self) -> bool:
        return bool(self.errors) or any(isinstance(e, TextEvent) and e.finish_reason for e in self.events)


def request(
    name: str,
    prompt: Sequence[int],
    composition: CompositionRequest | None = None,
    n: int = 1,
    **sampling: object,
) -> GenerationRequest:
    """A greedy request of eight tokens unless told otherwise."""
    params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **sampling})  # type: ignore[arg-type]
    return GenerationRequest(name, tuple(prompt), params, composition or CompositionRequest("base"), n)


def fixed(**weights: float) -> CompositionRequest:
    return CompositionRequest("fixed", weights)


def start(engine: StepEngine, *requests: GenerationRequest) -> list[Answer]:
    """Take `requests` in; steps are the caller's."""
    answers = []
    for one in requests:
        answers.append(Answer())
        engine.check(one)
        engine.add(one, answers[-1].events.append)
    return answers


def run(engine: StepEngine, *requests: GenerationRequest) -> list[Answer]:
    """Take `requests` in at once and step until all are over."""
    answers = start(engine, *requests)
    finish(engine)
    return answers


def finish(engine: StepEngine, limit: int = 2000) -> None:
    step_until(engine, lambda: not engine.has_work, limit)


def step_until(engine: StepEngine, done: Callable[[], bool], limit: int = 2000) -> None:
    for _ in range(limit):
        if done():
            return
        if not engine.can_step:
            engine.wait(10)  # for stacks that are being loaded
        engine.step()
    raise AssertionError(f"not done after {limit} steps")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """`length` random byte tokens."""
    random = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(0, 256, (length,), generator=random).tolist()


def idle(served: Served) -> bool:
    """Nothing runs, waits, is pinned, or holds KV memory."""
    load = served.engine.gauges
    pinned = any(served.engine.stacks.in_use(domain) for domain in served.stacks)
    return (load.running, load.waiting, load.kv_tokens_used, pinned) == (0, 0, 0, False)
