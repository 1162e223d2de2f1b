"""Log-probabilities as clients see them: a token, its text, and the most likely alternatives."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.request import MAX_TOP_LOGPROBS, TokenLogprob
from brainstacks.errors import EngineFailure

NOT_FINITE = "the model gave values that are not finite for this request; others go on; retry it"
_ROWS = 64
"""Rows at a time, so that a long prompt over a large vocabulary needs no second copy of its logits."""


def most_likely(scores: Tensor, width: int) -> Tensor:
    """The `width` highest of each row of [L, V], best first, of equals the lowest id first.

    Returns:
        their ids, [L, width] int64. Which of several equal ones make the last places is not said, unless
        `width` is V.
    """
    if width >= scores.shape[-1]:
        return scores.sort(dim=-1, descending=True, stable=True).indices
    ids = scores.topk(width, sorted=False).indices.sort(dim=-1).values
    order = scores.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def token_logprobs(
    tokenizer: Tokenizer | None, logits: Tensor, tokens: Sequence[int], tops: Sequence[int]
) -> list[TokenLogprob]:
    """The entry of one token per row. Every row is computed as if it were alone, bit for bit.

    Args:
        tokenizer: for texts and bytes; both are empty where the base has none.
        logits: [L, V] float32.
        tokens: [L] token ids.
        tops: [L] how many of the most likely tokens to list with each, best first; 0..MAX_TOP_LOGPROBS.

    Raises:
        EngineFailure: a token's log-probability is not a number, because its row's logits are not finite.
    """
    entries: list[TokenLogprob] = []
    for start in range(0, len(tokens), _ROWS):
        rows = slice(start, start + _ROWS)
        entries += _entries(tokenizer, logits[rows].log_softmax(-1), tokens[rows], tops[rows])
    return entries


def _entries(
    tokenizer: Tokenizer | None, logprobs: Tensor, tokens: Sequence[int], tops: Sequence[int]
) -> list[TokenLogprob]:
    # One width for all: what one row asks for must not decide which of equal tokens another one lists.
    best = most_likely(logprobs, min(MAX_TOP_LOGPROBS, logprobs.shape[-1]) if any(tops) else 0)
    best_values = logprobs.gather(-1, best).tolist()
    own = logprobs.gather(-1, logprobs.new_tensor(tokens, dtype=best.dtype)[:, None])
    ranks = (1 + (logprobs > own).sum(-1)).tolist()
    chosen = own[:, 0].tolist()
    if any(map(math.isnan, chosen)):
        raise EngineFailure(NOT_FINITE)

    def entry(
        token: int, logprob: float, top: tuple[TokenLogprob, ...] = (), rank: int | None = None
    ) -> TokenLogprob:
        if tokenizer is None:
            return TokenLogprob(token, logprob, "", b"", top, rank)
        text, token_bytes = tokenizer.token_text(token), tokenizer.token_bytes(token)
        return TokenLogprob(token, logprob, text, token_bytes, top, rank)

    return [
        entry(token, logprob, tuple(map(entry, ids[:top], values[:top])), rank)
        for token, logprob, top, ids, values, rank in zip(
            tokens, chosen, tops, best.tolist(), best_values, ranks, strict=True
        )
    ]
