"""The two shapes that OpenAI gives log-probabilities (nats) of tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.request import TokenLogprob

LOWEST = -9999.0
"""What -inf becomes: JSON has no infinity (vLLM's value)."""


class TextOffsets:
    """Where each token starts in the decoded text, in characters.

    Tokens may hold parts of a UTF-8 character; such a token starts where its character does.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._position = 0

    def next(self, token: bytes) -> int:
        """The offset of the next token, which is `token`."""
        start = self._position
        self._position += len(self._decoder.decode(token))
        return start


def completion_logprobs(
    tokens: Sequence[TokenLogprob | None],
    ids: Sequence[int],
    tokenizer: Tokenizer,
    offsets: TextOffsets,
) -> dict[str, Any]:
    """`logprobs` of a completion choice: four arrays, one entry per token.

    Args:
        tokens: log-probabilities; None where there is none (the first token of a prompt).
        ids: of the same tokens.
        offsets: continued from the choice's earlier tokens.
    """
    if len(tokens) != len(ids):
        raise ValueError(f"{len(tokens)} log-probabilities for {len(ids)} tokens")
    return {
        "tokens": [tokenizer.token_text(token_id) for token_id in ids],
        "token_logprobs": [None if token is None else finite(token.logprob) for token in tokens],
        "top_logprobs": [None if token is None else _by_text(token) for token in tokens],
        "text_offset": [offsets.next(tokenizer.token_bytes(token_id)) for token_id in ids],
    }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    content = [{**_entry(token), "top_logprobs": [_entry(top) for top in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def prompt_logprobs(tokens: Sequence[TokenLogprob | None], top: int) -> list[dict[str, Any] | None]:
    """vLLM's form of a prompt's: per token an object of token id -> what is known of it; null first.

    The token itself and the `top` likeliest, whose rank is their place.
    """
    return [None if token is None else _by_id(token, top) for token in tokens]


def cut(tokens: Sequence[TokenLogprob | None], top: int) -> list[TokenLogprob | None]:
    """With at most `top` alternatives: a prompt's may have been computed for a field that asks for more."""
    return [None if token is None else replace(token, top=token.top[:top]) for token in tokens]


def finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _by_text(token: TokenLogprob) -> dict[str, float]:
    """The alternatives and the token itself. Of two with the same text the likelier one stays."""
    best: dict[str, float] = {}
    for each in (*token.top, token):
        best[each.text] = max(finite(each.logprob), best.get(each.text, LOWEST))
    return best


def _by_id(token: TokenLogprob, top: int) -> dict[str, Any]:
    ranks = {each.token_id: rank for rank, each in enumerate(token.top, start=1)}
    return {
        str(each.token_id): {
            "logprob": finite(each.logprob),
            "rank": ranks.get(each.token_id, each.rank),
            "decoded_token": each.text,
        }
        for each in (token, *token.top[:top])
    }


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.token_bytes)}
