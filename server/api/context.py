"""What every handler works with, handed in by `create_app`, and the steps that they share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from brainstacks.engine.interface import Engine
from brainstacks.engine.request import SamplingParams
from brainstacks.errors import ContextTooLong, InvalidRequest
from server.encoder import Encoder
from server.errors import RequestRefused
from server.fleet.states import Fleet
from server.keys import Keys
from server.metrics import Metrics
from server.offences import Offence, in_one
from server.rate_limit import RateLimits
from server.schemas import Body, ChatTemplated, Sampling
from server.settings import Settings
from server.tool_format import ToolFormat


@dataclass(frozen=True)
class Context:
    """One app's parts."""

    engine: Engine
    settings: Settings
    metrics: Metrics
    keys: Keys
    encoder: Encoder
    limits: RateLimits
    tool_format: ToolFormat
    fleet: Fleet

    async def encode_words(self, words: Sequence[str], tenant: str) -> list[list[int]]:
        """Token ids of each word, as it is and, like vLLM, with a space in front."""
        found: list[list[int]] = []
        for word in words:
            for text in dict.fromkeys((word, " " + word.lstrip(" "))):
                found.append(await self.encoder.encode(text, tenant, add_special_tokens=False))
        return [ids for ids in found if ids]

    def truncated(self, prompt_ids: list[int], body: Sampling) -> list[int]:
        """The last `truncate_prompt_tokens` of a prompt; with -1, as many as leave room for what is asked."""
        context = self.engine.status.model.max_context
        keep = body.truncate_prompt_tokens
        if keep is None:
            return prompt_ids
        if keep > context:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {keep}; the context holds {context} tokens",
                param="truncate_prompt_tokens",
            )
        if keep == -1:
            keep = max(1, context - (1 if body.asked_tokens is None else body.asked_tokens))
        return prompt_ids[-keep:]

    def room(self, prompt_ids: Sequence[int], param: str) -> int:
        """Tokens left for a completion. Raises when the prompt is empty, out of range or too long."""
        if not prompt_ids:
            raise InvalidRequest(f"{param} has no tokens; send at least one", param=param)
        left = self.engine.status.model.max_context - len(prompt_ids)
        if left < 0:
            raise self.too_long(len(prompt_ids), 0, param)
        self.check_ids(prompt_ids, param)
        return left

    def ignored_headers(self, body: Body) -> Mapping[str, str]:
        """`x-brainstacks-ignored: metadata, user`: what `body` sets without effect, if anything."""
        names = body.ignored()
        if isinstance(body, ChatTemplated):
            unread = (body.chat_template_kwargs or {}).keys() - self.engine.tokenizer.template_variables
            names += [f"chat_template_kwargs.{name}" for name in sorted(unread)]
        return {"x-brainstacks-ignored": ", ".join(names)} if names else {}

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises InvalidRequest for the first id that is not in the vocabulary."""
        size = self.engine.status.model.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise InvalidRequest(
                    f"{param} has token id {token_id}; ids lie in 0..{size - 1}", param=param
                )

    def check_sampling(self, body: Sampling, sampling: SamplingParams, *found: Offence) -> None:
        """Raises InvalidRequest, naming every field, for what only the model or the prompt can tell, and for
        what a route has `found` itself."""
        wrong = list(found)
        for ids, param in (
            (tuple(sampling.logit_bias), "logit_bias"),
            (sampling.stop_token_ids, "stop_token_ids"),
            (sampling.allowed_token_ids, "allowed_token_ids"),
        ):
            try:
                self.check_ids(ids, param)
            except InvalidRequest as error:
                wrong.append(Offence(param, "invalid_value", error.message))
        if sampling.min_tokens > sampling.max_tokens:
            message = f"min_tokens is {body.min_tokens}; it is at most max_tokens ({sampling.max_tokens})"
            wrong.append(Offence("min_tokens", "invalid_value", message))
        if wrong:
            told = in_one(wrong)
            raise InvalidRequest(told.message, param=told.param)

    def too_long(self, prompt_tokens: int, max_tokens: int, param: str) -> ContextTooLong:
        model = self.engine.status.model
        asked = f" and {max_tokens} more are asked for" if max_tokens else ""
        return ContextTooLong(
            f"The prompt has {prompt_tokens} tokens{asked}; the context of {model.name} holds "
            f"{model.max_context}. Shorten the prompt or ask for fewer",
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


def known_query(request: Request) -> None:
    """Raises RequestRefused, naming them all, for query parameters that come twice, and for those of a route
    that takes none.

    A route that takes some declares a model of them, which refuses the others itself.
    """
    given = Counter(name for name, _ in request.query_params.multi_items())
    code, rule = "unsupported_parameter", "is not supported here; leave it out"
    if request.scope["route"].dependant.query_params:
        given = Counter({name: times for name, times in given.items() if times > 1})
        code, rule = "invalid_value", "is sent more than once; send it once"
    if given:
        told = in_one([Offence(name[:64], code, f"{name[:64]!r} {rule}") for name in given])
        raise RequestRefused(400, told.message, code=told.code, param=told.param)


Ctx = Annotated[Context, Depends(_context)]
