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

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        n, best_of = self.n or 1, self.best_of
        if best_of is not None and best_of < n:
            yield "best_of", f"it is less than 'n' ({n}); it is at least 'n'"
        if best_of is not None and best_of > n and self.stream:
            yield "best_of", "beyond 'n' it cannot be streamed; leave out 'stream' or 'best_of'"
