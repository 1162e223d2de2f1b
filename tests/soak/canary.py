"""A question whose answer must not change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx2 as httpx

from tests.soak.client import ask

PROMPT = "A canary sings, 17 times: " + "sol la ti " * 4


@dataclass(frozen=True)
class Answer:
    """Attributes:
    text: of a greedy completion.
    error: why there is none.
    """

    text: str
    error: str | None

    @property
    def whole(self) -> bool:
        return self.error is None


Answers = Mapping[str, Answer]


class Canary:
    """Asks by each of `names`: what follows the base's name, as in `:chat`."""

    def __init__(self, client: httpx.AsyncClient, model: str, names: Sequence[str] = ("",)) -> None:
        self._client = client
        self._models = {name: model + name for name in names}

    async def answers(self) -> Answers:
        """Raises HTTPStatusError where /health fails."""
        (await self._client.get("/health")).raise_for_status()
        body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "logprobs": 1}
        replies = await asyncio.gather(
            *(ask(self._client, {**body, "model": model}) for model in self._models.values())
        )
        return {
            name: Answer(reply.texts.get(0, ""), None if reply.whole else f"{reply.status} {reply.error}")
            for name, reply in zip(self._models, replies, strict=True)
        }
