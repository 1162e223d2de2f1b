"""Body of `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from brainstacks.engine.request import MAX_TOP_LOGPROBS
from server.schemas.body import ID_LISTS, IDS, TEXT, TEXTS, Integer, TokenIds
from server.schemas.sampling import MAX_N, MAX_SEQUENCES, Sampling


def _kind_of_prompt(prompt: object) -> str | None:
    """By its first item: what is wrong further on is told by the rule of that kind."""
    if isinstance(prompt, str):
        return TEXT
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    kinds = {str: TEXTS, int: IDS, float: IDS, list: ID_LISTS}
    return kinds.get(type(first))


Several = Field(min_length=1, max_length=MAX_SEQUENCES, fail_fast=True)
Ids = Annotated[TokenIds, Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag(TEXT)]
    | Annotated[list[str], Several, Tag(TEXTS)]
    | Annotated[Ids, Tag(IDS)]
    | Annotated[list[Ids], Several, Tag(ID_LISTS)],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="it is a text, a list of texts, a list of token ids, or a list of lists of "
        "token ids, not empty",
    ),
]


class CompletionRequest(Sampling):
    """Body of `POST /v1/completions`."""

    prompt: Prompt = Field(description="text, list of texts, token ids, or list of lists of token ids")
    max_tokens: Integer | None = Field(default=None, ge=0, le=2**31 - 1, description="16 when left out")
    max_completion_tokens: Integer | None = Field(default=None, ge=0, le=2**31 - 1)
    best_of: Integer | None = Field(default=None, ge=1, le=MAX_N)
    echo: bool | None = None
    logprobs: Integer | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    add_special_tokens: bool | None = Field(
        default=None, description="the base's own, such as BOS, around a text; true when left out"
    )
    response_start: Integer | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="index of the token with which a response begins that each prompt holds already; left "
        "out: 1 where the prompt's log-probabilities are asked for and max_tokens is 0 or 1, else none",
    )

    @property
    def prompt_top(self) -> int | None:
        """Alternatives to report per token of the prompt; None where its log-probabilities are not asked for,
        by neither of the fields that do."""
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((top for top in asked if top is not None), default=None)

    @property
    def response_begins(self) -> int | None:
        """Index of the prompt's token from which on it is a response; None where it is none.

        A prompt that is scored and not gone on from is a text that the composition is to have written. One
        token more is asked for by clients that cannot ask for none.
        """
        scored = self.prompt_top is not None and self.asked_tokens in (0, 1)
        return 1 if scored and self.response_start is None else self.response_start

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        n, best_of = self.n or 1, self.best_of
        if best_of is not None and best_of < n:
            yield "best_of", f"it is less than 'n' ({n}); it is at least 'n'"
        if best_of is not None and best_of > n and self.stream:
            yield "best_of", "beyond 'n' it cannot be streamed; leave out 'stream' or 'best_of'"
        if self.response_start is not None and self.truncate_prompt_tokens is not None:
            yield "response_start", "'truncate_prompt_tokens' moves what it counts; leave out one of them"
