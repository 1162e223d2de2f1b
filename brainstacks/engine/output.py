"""What one completion says: its tokens, its text, where it ends, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from torch import Tensor

from brainstacks.engine.completion import Completion
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.request import FinishReason, TextEvent, TokenLogprob
from brainstacks.engine.sampling.logprobs import token_logprobs
from brainstacks.engine.sampling.sampler import Sampled


def accept(completion: Completion, sampled: Sampled, ends: Sequence[int]) -> FinishReason | None:
    """Append a token to the completion.

    Args:
        ends: the base's end-of-sequence tokens; without effect under `ignore_eos`, unless a grammar leaves
            nothing else.

    Returns:
        why the completion ends with this token, or None when it goes on; `finish` is still to be called.
    """
    params, token = completion.request.sampling, sampled.token
    if not completion.output_ids:
        completion.timing.first_token = perf_counter()
    completion.output_ids.append(token)
    completion.cumulative_logprob += sampled.logprob
    if sampled.entry is not None:
        completion.logprobs.append(sampled.entry)
    if token in params.stop_token_ids:
        completion.stop_reason = token
        return "stop"
    matcher = completion.matcher
    if token in ends and (not params.ignore_eos or matcher is not None):
        return "stop"
    complete = matcher is not None and matcher.advance(token)
    if completion.detokenizer is not None:
        stop = completion.detokenizer.push(token, check_stop=_may_stop(completion))
        if stop is not None:
            completion.stop_reason = stop
            return "stop"
    if complete:
        return "stop"
    return "length" if len(completion.output_ids) >= params.max_tokens else None


def finish(completion: Completion, reason: FinishReason) -> FinishReason:
    """End the completion; the reason becomes "stop" if a stop string hides in the text held back till now."""
    if completion.detokenizer is not None and not isinstance(completion.stop_reason, str):
        stop = completion.detokenizer.flush(check_stop=_may_stop(completion))
        if stop is not None:
            reason, completion.stop_reason = "stop", stop
    completion.finish_reason = reason
    completion.timing.ended = perf_counter()
    return reason


def text_event(completion: Completion) -> TextEvent:
    """What is new since the last event of this completion."""
    done = completion.finish_reason is not None
    fresh = slice(completion.reported, len(completion.output_ids))
    completion.reported = len(completion.output_ids)
    return TextEvent(
        index=completion.index,
        text=completion.detokenizer.take(final=done) if completion.detokenizer is not None else "",
        token_ids=tuple(completion.output_ids[fresh]),
        logprobs=tuple(completion.logprobs[fresh]),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        completion_tokens=len(completion.output_ids),
        cumulative_logprob=completion.cumulative_logprob,
        timing=completion.timing if done else None,
    )


def prompt_logprobs(
    tokenizer: Tokenizer | None, prompt_ids: Sequence[int], start: int, logits: Tensor, top: int
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


def _may_stop(completion: Completion) -> bool:
    """Whether text may stop now; `min_tokens` counts every token before."""
    return len(completion.output_ids) > completion.request.sampling.min_tokens
