"""What sampling keeps of one completion from token to token."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from brainstacks.engine.request import SamplingParams


class SamplingState:
    """Made once per completion; it outlives preemption.

    Args:
        params: of the request.
        prompt_ids: its prompt.
        seed: of this completion's own draws, any integer; None draws one.
        ends: the base's end-of-sequence tokens.

    Attributes:
        random: one number in [0, 1) of it per drawn token, so that no neighbour changes a draw.
        penalised: whether some penalty is on.
        bias_ids, bias: [n] int64, [n] float32; `params.logit_bias`.
        allowed: [n] int64, the only tokens to choose from; empty for all.
        forbidden: [n] int64, every token that would end the text before `min_tokens`.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], seed: int | None, ends: Sequence[int]
    ) -> None:
        self.random = Random() if seed is None else Random(seed % 2**64)
        self.penalised = (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )
        self.bias_ids = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self.bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self.allowed = torch.tensor(params.allowed_token_ids, dtype=torch.int64)
        self._bad_words = params.bad_words
        last = () if params.ignore_eos else ends
        self.forbidden = torch.tensor([*last, *params.stop_token_ids], dtype=torch.int64)
        self._min_tokens = params.min_tokens
        # Only the repetition penalty looks at the prompt.
        known = dict.fromkeys(prompt_ids) if params.repetition_penalty != 1.0 else {}
        self._places = {token: place for place, token in enumerate(known)}
        room = len(known) + params.max_tokens if self.penalised else 0
        self._ids = torch.empty(room, dtype=torch.int64)
        self._ids[: len(known)] = torch.tensor(list(known), dtype=torch.int64)
        self._counts = torch.zeros(room)
        self._followed = 0

    def may_end(self, output_ids: Sequence[int]) -> bool:
        """Whether the token after `output_ids` may end the text, as far as `min_tokens` is concerned."""
        return len(output_ids) >= self._min_tokens

    def adjusts(self, output_ids: Sequence[int]) -> bool:
        """Whether the logits after `output_ids` are not taken as they are."""
        return (
            self.penalised
            or len(self.bias_ids) > 0
            or len(self.allowed) > 0
            or len(self._bad_words) > 0
            or not self.may_end(output_ids)
        )

    def barred(self, output_ids: Sequence[int], *, held: bool) -> Tensor:
        """[n] int64, tokens that may not follow `output_ids`: where the text is `held` from its end, those
        that end it, and the last token of each bad word of which all others have just been chosen."""
        ends = [
            word[-1]
            for word in self._bad_words
            if len(word) - 1 <= len(output_ids)
            and word[:-1] == tuple(output_ids[len(output_ids) - len(word) + 1 :])
        ]
        early = self.forbidden if held else self.forbidden[:0]
        return torch.cat([early, torch.tensor(ends, dtype=torch.int64)]) if ends else early

    def seen(self, output_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What penalties are about.

        Args:
            output_ids: all tokens chosen so far; those of the last call come first.

        Returns:
            [n] int64, the distinct tokens of `output_ids` (and of the prompt, with a repetition penalty),
            and [n] float32, how often each is among `output_ids`.
        """
        for token in output_ids[self._followed :]:
            place = self._places.setdefault(token, len(self._places))
            self._ids[place] = token
            self._counts[place] += 1
        self._followed = len(output_ids)
        return self._ids[: len(self._places)], self._counts[: len(self._places)]
