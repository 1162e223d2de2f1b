"""What every handler works with, handed in by `create_app`, and the steps that they share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from brainstacks.engine.interface import Engine
from brainstacks.engine.request import SamplingParams
from brainstacks.errors import ContextTooLong, InvalidRequest
from server.encoder import Encoder
from server.keys import Keys
from server.metrics import Metrics
from server.rate_limit import RateLimits
from server.schemas import Sampling
from server.settings import Settings


@dataclass(frozen=True)
class Context:
    """One app's parts."""

    engine: Engine
    settings: Settings
    metrics: Metrics
    keys: Keys
    encoder: Encoder
    limits: RateLimits

    def room(self, prompt_ids: Sequence[int], param: str) -> int:
        """Tokens left for a completion. Raises when the prompt is empty, out of range or too long."""
        if not prompt_ids:
            raise InvalidRequest(f"{param} has no tokens; send at least one", param=param)
        left = self.engine.status.model.max_context - len(prompt_ids)
        if left < 0:
            raise self.too_long(len(prompt_ids), 0, param)
        self.check_ids(prompt_ids, param)
        return left

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises InvalidRequest for the first id that is not in the vocabulary."""
        size = self.engine.status.model.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise InvalidRequest(
                    f"{param} has token id {token_id}; ids lie in 0..{size - 1}", param=param
                )

    def check_sampling(self, body: Sampling, sampling: SamplingParams) -> None:
        """Raises InvalidRequest for what only the model's own size or two fields together can tell."""
        self.check_ids(tuple(sampling.logit_bias), "logit_bias")
        self.check_ids(sampling.stop_token_ids, "stop_token_ids")
        if body.min_tokens is not None and body.min_tokens > sampling.max_tokens:
            raise InvalidRequest(
                f"min_tokens is {body.min_tokens}; it is at most max_tokens ({sampling.max_tokens})",
                param="min_tokens",
            )

    def too_long(self, prompt_tokens: int, max_tokens: int, param: str) -> ContextTooLong:
        model = self.engine.status.model
        asked = f" and {max_tokens} more are asked for" if max_tokens else ""
        return ContextTooLong(
            f"The prompt has {prompt_tokens} tokens{asked}; the context of {model.name} holds "
            f"{model.max_context}. Shorten the prompt or lower max_tokens",
            param=param,
        )

    def envelope(self, request: Request, kind: str, prefix: str, model: str) -> dict[str, Any]:
        """The fields that every (chunk of a) completion starts with."""
        info = self.engine.status.model
        return {
            "id": f"{prefix}-{request.state.request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"fp_{info.fingerprint[:12]}_g{self.engine.stacks.generation}",
        }


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(_context)]
