"""What an answer says and which functions it calls, read as it comes."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from server.tool_format import ToolFormat, squeezed

_VISIBLE = re.compile(r"\S")
_ALPHABET = string.ascii_letters + string.digits


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)


def _new_id() -> str:
    """Nine letters and digits: there are chat templates that take no other."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


@dataclass(frozen=True)
class Call:
    """A call of a function; `arguments` is a JSON object as the model wrote it."""

    name: str
    arguments: str
    id: str = field(default_factory=_new_id)


class CallReader:
    """Reads one answer: its texts and calls, in their order.

    What turns out to be no call of a known function is text. White space beside a call is left out, and
    nothing else.

    Args:
        names: of the functions that can be called.
        most: calls; what would be a further one is text.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], most: int) -> None:
        self._form, self._names, self._most = form, names, most
        self._held = ""  # neither text nor call yet
        self._in_call = False  # what is held begins with a call that is not complete
        self._spoke = False  # since the last call
        self._made = 0

    def feed(self, text: str, *, final: bool = False) -> list[str | Call]:
        """What is certain with this further piece.

        Args:
            final: it is the last one.
        """
        self._held += text
        # A long call is not read anew for each token: one of these ends it.
        if self._in_call and not final and not any(end in text for end in "}]>"):
            return []
        found = self._marked(final) if self._form.marker else self._whole(final)
        return [piece for piece in found if piece]

    def _whole(self, final: bool) -> list[str | Call]:
        """Where calls have no marker: the answer is nothing but calls, or a text."""
        if not self._spoke and self._held.lstrip()[:1] in ("", "{"):
            if not final:
                return []
            read = self._read(0, final)
            if read and not self._held[read[1] :].strip():
                return [*read[0]]
        self._spoke = True
        said, self._held = self._held, ""
        return [said]

    def _marked(self, final: bool) -> list[str | Call]:
        marker, found, at = self._form.marker, list[str | Call](), 0
        self._in_call = waits = False
        while not waits and self._made < self._most and (at := self._held.find(marker, at)) >= 0:
            read = self._read(at, final)
            inside = _VISIBLE.search(self._held, at + len(marker))
            if read is not None:
                found += [self._said(self._held[:at]).rstrip(), *read[0]]
                self._held, at = self._held[read[1] :], 0
                self._made += len(read[0])
                self._spoke = False
            elif final or (inside and inside[0] not in self._form.follows_marker):
                at += len(marker)
            else:
                waits, self._in_call = True, inside is not None
        if final:
            return [*found, self._said(self._held)]
        end = at if waits else len(self._held) - self._begun()
        end = len(self._held[:end].rstrip())  # a call may follow
        found.append(self._said(self._held[:end]))
        self._held = self._held[end:]
        return found

    def _said(self, text: str) -> str:
        """`text`, less the white space behind a call."""
        if self._made and not self._spoke:
            text = text.lstrip()
        self._spoke = self._spoke or bool(text)
        return text

    def _read(self, at: int, final: bool) -> tuple[list[Call], int] | None:
        """The calls that begin at a place, and where they end; None where none is, or not complete yet."""
        form, text, calls = self._form, self._held, list[Call]()
        place = form.begins.match(text, at)
        while place and (head := form.calls.match(text, place.end())):
            rest = text[head.end() :]  # an error's line is counted from the beginning
            try:
                arguments, length = _JSON.raw_decode(rest)
            except (ValueError, RecursionError):
                return None
            calls.append(Call(head["name"], rest[:length]))
            known = head["name"] in self._names and isinstance(arguments, dict)
            if not known or self._made + len(calls) > self._most:
                return None
            end = head.end() + length
            if final and squeezed(text[end:]) in form.cut_ends:
                return calls, len(text)
            after = form.ends.match(text, end)
            if after is None:
                return None
            end = after.end()
            place = form.goes_on.match(text, end) if form.in_one_row else None
        close = form.closes.match(text, end) if calls else None
        return (calls, close.end()) if close else None

    def _begun(self) -> int:
        """Length of the longest end of what is held with which the marker may begin."""
        marker = self._form.marker
        return next((n for n in range(len(marker) - 1, 0, -1) if self._held.endswith(marker[:n])), 0)
