"""What streams ask for, the same over HTTP and in process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.instruments.registries import Served
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import request
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.request import CompositionRequest, GenerationRequest, Mode

POOL = 128
"""Questions that are asked, one after the other and then again; nothing keeps their keys and values."""


MIXES = ("base", "fixed", "routed")


@dataclass(frozen=True)
class Mix:
    """How all requests are composed."""

    mode: Mode
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def routing(self) -> dict[str, Any]:
        """The field of a request's body."""
        return {"mode": self.mode, **({"weights": dict(self.weights)} if self.weights else {})}


@dataclass(frozen=True)
class Ask:
    """A question in chat, answered greedily in exactly `tokens` tokens."""

    text: str
    mix: Mix
    tokens: int

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.text}]

    def body(self, model: str) -> dict[str, Any]:
        """Of `POST /v1/chat/completions`."""
        return {
            "model": model,
            "messages": self.messages,
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "routing": self.mix.routing,
        }

    def request(self, name: str, tokenizer: Tokenizer) -> GenerationRequest:
        """What the server makes of `body`."""
        prompt = tokenizer.encode_chat(self.messages)
        return request(name, prompt, self.tokens, CompositionRequest(self.mix.mode, self.mix.weights))


def mixes(stacks: Served) -> dict[str, Mix]:
    """Of `MIXES`: the base alone; four stacks of random weights; and routed, where there is a router."""
    base, fixed, routed = Mix("base"), Mix("fixed", traffic.adjacent(stacks.random)), Mix("routed")
    found = dict(zip(MIXES, (base, fixed, routed), strict=True))
    if stacks.registry.snapshot().router is None:
        del found["routed"]
    return found


def firsts(mix: Mix, streams: int, tokens: int) -> list[Ask]:
    """The first request of each stream, from short to long: answers then end evenly spread in time, as
    those of clients do that know nothing of each other."""
    return [Ask(traffic.question(row), mix, max(1, tokens * (row + 1) // streams)) for row in range(streams)]


def following(mix: Mix, tokens: int) -> list[Ask]:
    """Those that come after them, in turn and again and again; whichever stream is free takes the next."""
    return [Ask(traffic.question(number), mix, tokens) for number in range(POOL)]
