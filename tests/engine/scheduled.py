"""A scheduler with blocks of its own, and completions that arrive one after another."""

from __future__ import annotations

from typing import Any

from brainstacks.config import EngineConfig
from brainstacks.engine.block_manager import BlockManager
from brainstacks.engine.completion import Completion
from brainstacks.engine.scheduler import Row, Scheduler
from tests.engine.completions import advance, completion


class Scheduled(Scheduler):
    """A scheduler with blocks of its own."""

    def __init__(self, *completions: Completion, **limits: Any) -> None:
        config = EngineConfig(**limits)
        self.manager = BlockManager(
            config.kv_cache_tokens or 4096, prefix_caching=False, reserve=config.deterministic
        )
        super().__init__(config, self.manager)
        for one in completions:
            self.add(one)

    def step(self) -> list[Row]:
        rows = self.schedule()
        advance(rows)
        return rows


def completions(*prompts: int, max_tokens: int = 10) -> list[Completion]:
    """In the order of arrival."""
    return [completion(prompt, max_tokens, arrival) for arrival, prompt in enumerate(prompts)]
