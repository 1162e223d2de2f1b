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
    """Append a token to the completion: all that the next step has to know of it. `spell` is still to come.

    Args:
        ends: the base's end-of-sequence tokens; without effect under `ignore_eos`, unless a grammar leaves
            nothing else.

    Returns:
        why the completion ends with this token, or None when it goes on, as far as its text lets it.
    """
    params, token = completion.request.sampling, sampled.token
    if not completion.output_ids:
        completion.timing.first_token = perf_counter()
    completion.output_ids.append(token)
    completion.cumulative_logprob += sampled.logprob
    if token in params.stop_token_ids:
        completion.stop_reason = token
    if _ends(completion, token, ends):
        return "stop"
    if completion.matcher is not None and completion.matcher.advance(token):
        return "stop"
    return "length" if len(completion.output_ids) >= params.max_tokens else None


def spell(
    completion: Completion, sampled: Sampled, ends: Sequence[int], reason: FinishReason | None
) -> FinishReason | None:
    """Turn the token that was accepted last into what readers get.

    Args:
        ends, reason: given to `accept`, and by it.

    Returns:
        why the completion ends with this token: "stop" if it completes a stop string, else `reason`; `finish`
        is still to be called.
    """
    if sampled.entry is not None:
        completion.logprobs.append(sampled.entry)
    if completion.detokenizer is None or _ends(completion, sampled.token, ends):
        return reason
    stop = completion.detokenizer.push(sampled.token, check_stop=_may_stop(completion))
    if stop is None:
        return reason
    completion.stop_reason = stop
    return "stop"


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


def _ends(completion: Completion, token: int, ends: Sequence[int]) -> bool:
    """Whether the token itself ends the text, of which it is then no part."""
    params = completion.request.sampling
    heeded = not params.ignore_eos or completion.matcher is not None
    return token in params.stop_token_ids or (token in ends and heeded)


def _may_stop(completion: Completion) -> bool:
    """Whether text may stop now; `min_tokens` counts every token before."""
    return len(completion.output_ids) > completion.request.sampling.min_tokens
