"""Token ids -> growing text: whole UTF-8 characters only, and no part of a possible stop string."""

from __future__ import annotations

from collections.abc import Sequence

from brainstacks.engine.interface import Tokenizer

_REPLACEMENT = "\ufffd"
_INCOMPLETE = 3
"""The most bytes of a character that is not whole yet, and so the most replacement characters it shows as."""
_CONTEXT = 8
"""Tokens of the prompt that give the first ones of the text their context."""
_PATIENCE = 16
"""Tokens after which what is no character is text as it is. Each has a byte or more, and a character has at
most four, so it never becomes one; and the last 16 tokens end in the same text as all of them do.
"""


class Detokenizer:
    """The text of one completion. The work for a token does not grow with their number.

    For a byte-level vocabulary all text taken is what decoding all tokens at once gives.

    Args:
        tokenizer: of the base.
        stop: strings that end the text and are not part of it.
        prompt_ids: what the text follows; SentencePiece's decoders take the space from what begins a text.
        skip_special_tokens: the text leaves out special tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        prompt_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop = tuple(stop)
        self._window = list(prompt_ids[-_CONTEXT:])  # the newest tokens, behind some that give their context
        if self._decode(self._window).endswith(_REPLACEMENT):
            self._window = []  # a part of a character is no context
        self._read = len(self._window)  # tokens of the window that are context
        self._said = len(self._decode(self._window))  # characters of the window that are in `text`
        self.text = ""
        self._released = 0

    def push(self, token_id: int, *, check_stop: bool = True) -> str | None:
        """Add a token; the stop string that is now complete, if one is.

        Args:
            check_stop: False while a completion may not stop yet (`min_tokens`).
        """
        self._window.append(token_id)
        now = self._decode(self._window)
        if len(now) > self._said and not now.endswith(_REPLACEMENT):
            piece = now[self._said :]
            self._slide(self._read, held=0)
            self._read = len(self._window)
            return self._append(piece, check_stop)
        if self._is_special(token_id):
            self._window.pop()
            return None
        if len(self._window) - self._read < _PATIENCE:
            return None  # a part of a character: wait for the rest
        held = min(len(now) - len(now.rstrip(_REPLACEMENT)), _INCOMPLETE)
        piece = now[self._said : len(now) - held]
        self._slide(len(self._window) - _PATIENCE, held)
        self._read = 0
        return self._append(piece, check_stop)

    def flush(self, *, check_stop: bool = True) -> str | None:
        """The end: what was held back becomes text (a broken character as U+FFFD); a stop string, if any."""
        piece = self._decode(self._window)[self._said :]
        self._said += len(piece)
        return self._append(piece, check_stop)

    def take(self, *, final: bool = False) -> str:
        """Text that was not taken before; unless `final`, less a tail that could begin a stop string."""
        end = len(self.text) if final else len(self.text) - self._held()
        piece = self.text[self._released : end]
        self._released = max(self._released, end)
        return piece

    def _slide(self, start: int, held: int) -> None:
        """Drop the window's tokens before `start`; all but the last `held` characters of it are in `text`."""
        self._window = self._window[start:]
        self._said = len(self._decode(self._window)) - held

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)

    def _is_special(self, token_id: int) -> bool:
        return not self._decode([token_id]) and bool(self._tokenizer.decode([token_id]))

    def _append(self, piece: str, check_stop: bool) -> str | None:
        start = len(self.text)
        self.text += piece
        if not check_stop:
            return None
        found = [
            (at, stop)
            for stop in self._stop
            if (at := self.text.find(stop, max(self._released, start - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        at, stop = min(found)
        self.text = self.text[:at]
        return stop

    def _held(self) -> int:
        """Length of the longest end of the text that begins some stop string."""
        longest = 0
        for stop in self._stop:
            for n in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:n]):
                    longest = n
                    break
        return longest
