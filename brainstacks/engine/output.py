"""What one completion says: its tokens, its text, where it ends, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from torch import Tensor

from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.logprobs import token_logprobs
from brainstacks.engine.request import FinishReason, TextEvent, TokenLogprob
from brainstacks.engine.sampler import Sampled
from brainstacks.engine.sequence import Sequence


def accept(sequence: Sequence, sampled: Sampled, ends: SequenceOf[int]) -> FinishReason | None:
    """Append a token to the completion.

    Args:
        ends: the base's end-of-sequence tokens; without effect under `ignore_eos`.

    Returns:
        why the completion ends with this token, or None when it goes on; `finish` is still to be called.
    """
    params, token = sequence.request.sampling, sampled.token
    sequence.output_ids.append(token)
    sequence.cumulative_logprob += sampled.logprob
    if sampled.entry is not None:
        sequence.logprobs.append(sampled.entry)
    if token in params.stop_token_ids:
        sequence.stop_reason = token
        return "stop"
    if token in ends and not params.ignore_eos:
        return "stop"
    if sequence.detokenizer is not None:
        stop = sequence.detokenizer.push(token, check_stop=_may_stop(sequence))
        if stop is not None:
            sequence.stop_reason = stop
            return "stop"
    return "length" if len(sequence.output_ids) >= params.max_tokens else None


def finish(sequence: Sequence, reason: FinishReason) -> FinishReason:
    """End the completion; the reason becomes "stop" if a stop string hides in the text held back till now."""
    if sequence.detokenizer is not None and not isinstance(sequence.stop_reason, str):
        stop = sequence.detokenizer.flush(check_stop=_may_stop(sequence))
        if stop is not None:
            reason, sequence.stop_reason = "stop", stop
    sequence.finish_reason = reason
    return reason


def text_event(sequence: Sequence) -> TextEvent:
    """What is new since the last event of this completion."""
    done = sequence.finish_reason is not None
    fresh = slice(sequence.reported, len(sequence.output_ids))
    sequence.reported = len(sequence.output_ids)
    return TextEvent(
        index=sequence.index,
        text=sequence.detokenizer.take(final=done) if sequence.detokenizer is not None else "",
        token_ids=tuple(sequence.output_ids[fresh]),
        logprobs=tuple(sequence.logprobs[fresh]),
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        completion_tokens=len(sequence.output_ids),
        cumulative_logprob=sequence.cumulative_logprob,
    )


def prompt_logprobs(
    tokenizer: Tokenizer | None, prompt_ids: SequenceOf[int], start: int, logits: Tensor, top: int
) -> list[TokenLogprob | None]:
    """The prompt's log-probabilities, a chunk at a time.

    Args:
        start: position of the chunk's first token in the prompt.
        logits: [L, V] float32, of the positions from `start` on. Those of the prompt's last position, which
            give the first token of the completion, may be among them.
        top: how many of the most likely tokens to list with each.

    Returns:
        one entry for each of the positions `start + 1 .. start + L` that the prompt has; before the first
        chunk's, None for the first token, which nothing predicts.

    Raises:
        EngineFailure: the logits are not finite.
    """
    targets = prompt_ids[start + 1 : start + 1 + len(logits)]
    found = token_logprobs(tokenizer, logits[: len(targets)], targets, [top] * len(targets))
    return [*([None] if start == 0 else []), *found]


def _may_stop(sequence: Sequence) -> bool:
    """Whether text may stop now; `min_tokens` counts every token before."""
    return len(sequence.output_ids) > sequence.request.sampling.min_tokens
