"""Log-probabilities as clients see them: a token, its text, and the most likely alternatives."""

from __future__ import annotations

from torch import Tensor

from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.request import TokenLogprob


def token_logprob(tokenizer: Tokenizer | None, logprobs: Tensor, token: int, top: int) -> TokenLogprob:
    """The entry of `token`.

    Args:
        tokenizer: for texts and bytes; both are empty where the base has none.
        logprobs: [V] float32, a log-softmax (nats).
        top: how many of the most likely tokens to list with it, best first.
    """
    values, ids = logprobs.topk(top) if top else (logprobs[:0], logprobs[:0])
    best = [_entry(tokenizer, int(i), float(v)) for v, i in zip(values, ids, strict=True)]
    return _entry(tokenizer, token, float(logprobs[token]), tuple(best))


def _entry(
    tokenizer: Tokenizer | None, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    if tokenizer is None:
        return TokenLogprob(token, logprob, "", b"", top)
    return TokenLogprob(token, logprob, tokenizer.token_text(token), tokenizer.token_bytes(token), top)
