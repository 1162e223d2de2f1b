"""Token ids -> growing text: whole UTF-8 characters only, and no part of a possible stop string."""

from __future__ import annotations

from collections.abc import Sequence

from brainstacks.engine.interface import Tokenizer

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one completion.

    Args:
        tokenizer: of the base.
        stop: strings that end the text and are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._prefix = 0  # tokens from here on give the context that the newest ones are decoded in
        self._read = 0  # tokens up to here are in `text`
        self.text = ""
        self._released = 0

    def push(self, token_id: int, *, check_stop: bool = True) -> str | None:
        """Add a token; the stop string that is now complete, if one is.

        Args:
            check_stop: False while a completion may not stop yet (`min_tokens`).
        """
        self._ids.append(token_id)
        before = self._tokenizer.decode(self._ids[self._prefix : self._read], skip_special_tokens=True)
        now = self._tokenizer.decode(self._ids[self._prefix :], skip_special_tokens=True)
        if len(now) <= len(before) or now.endswith(_REPLACEMENT):
            return None  # a part of a character: wait for the rest
        self._prefix, self._read = self._read, len(self._ids)
        return self._append(now[len(before) :], check_stop)

    def flush(self, *, check_stop: bool = True) -> str | None:
        """The end: what was held back becomes text (a broken character as U+FFFD); a stop string, if any."""
        before = self._tokenizer.decode(self._ids[self._prefix : self._read], skip_special_tokens=True)
        now = self._tokenizer.decode(self._ids[self._prefix :], skip_special_tokens=True)
        self._prefix, self._read = self._read, len(self._ids)
        return self._append(now[len(before) :], check_stop)

    def take(self, *, final: bool = False) -> str:
        """Text that was not taken before; unless `final`, less a tail that could begin a stop string."""
        end = len(self.text) if final else len(self.text) - self._held()
        piece = self.text[self._released : end]
        self._released = max(self._released, end)
        return piece

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
