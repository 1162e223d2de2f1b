"""Text <-> token ids of a base: the one prompt format of training and serving.

Text of a special token (`<|im_end|>` typed by a user) never becomes that token.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from brainstacks.errors import InvalidRequest

_SENTINEL = "\ue000{}\ue001"  # private-use characters: no template and no vocabulary gives them a meaning


class ChatTokenizer:
    """A base's tokenizer and chat template.

    Args:
        tokenizer: a transformers tokenizer.
        eos_token_ids: every token id that ends a completion, as the base's generation config lists them.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # `split_special_tokens` is a state of a fast tokenizer, not of the call: threads that change it would
        # encode each other's way. So one instance encodes templates, another texts, and none ever changes.
        self._of_text = copy.deepcopy(tokenizer)
        self._of_text("", split_special_tokens=True)
        self.eos_token_ids = tuple(eos_token_ids)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of plain text; the base's BOS in front when `add_special_tokens` and it has one.

        Raises:
            InvalidRequest: `text` holds a lone surrogate.
        """
        _check_unicode(text)
        ids = self._of_text(text, add_special_tokens=add_special_tokens, split_special_tokens=True).input_ids
        return list(ids)

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of `messages` ({"role", "content"}) in the base's chat template.

        Raises:
            InvalidRequest: the base has no chat template, or its template refuses the messages.
        """
        for message in messages:
            _check_unicode(message["content"])
        if not self._holds_special_text(messages):
            return self._encode_template(self._render(messages, add_generation_prompt))
        # Render with stand-ins for the contents, and encode template and contents apart.
        stand_ins = [_SENTINEL.format(i) for i in range(len(messages))]
        rendered = self._render(
            [{**m, "content": s} for m, s in zip(messages, stand_ins, strict=True)], add_generation_prompt
        )
        ids: list[int] = []
        for message, stand_in in zip(messages, stand_ins, strict=True):
            template, found, rendered = rendered.partition(stand_in)
            if not found:
                raise InvalidRequest(
                    "a message holds the text of a special token, and the chat template does not place "
                    "every message in order; remove that text",
                    param="messages",
                )
            ids += self._encode_template(template)
            ids += self.encode(message["content"], add_special_tokens=False)
        return ids + self._encode_template(rendered)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """As it is inside a text: decoding one alone would take SentencePiece's space from it."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of one token; part of a character for byte-level pieces."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if token_id in self.special_ids:
            return str(token).encode()
        if self._byte_level:
            return bytes(_BYTE_OF[c] for c in token if c in _BYTE_OF)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return str(token).replace("▁", " ").encode()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids) | frozenset(
            i for i, token in self._tokenizer.added_tokens_decoder.items() if token.special
        )

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token that text can become; fewer tokens than bytes / this hold no text that
        the tokenizer keeps as it is."""
        ids = set(self._tokenizer.get_vocab().values()) - self.special_ids
        return max((len(self.token_bytes(token_id)) for token_id in ids), default=1) or 1

    @cached_property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """What the chat template puts after an assistant's answer, up to the token that ends generation."""
        rendered = self._render(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL.format(0)}], False
        )
        tail = self._encode_template(rendered.partition(_SENTINEL.format(0))[2])
        for i, token_id in enumerate(tail):
            if token_id in self.eos_token_ids:
                return tuple(tail[: i + 1])
        return self.eos_token_ids[:1]

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        import jinja2

        if not getattr(self._tokenizer, "chat_template", None):
            raise InvalidRequest(
                "this base has no chat template; use /v1/completions with a plain prompt", param="messages"
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(m) for m in messages], tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the chat template refuses the messages: {error}", param="messages"
            ) from error

    def _encode_template(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids)

    def _holds_special_text(self, messages: Sequence[Mapping[str, str]]) -> bool:
        return any(s in m["content"] for m in messages for s in self._special_texts)

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        return tuple(str(self._tokenizer.convert_ids_to_tokens(i)) for i in self.special_ids)

    @cached_property
    def _byte_level(self) -> bool:
        probe = self._tokenizer.convert_ids_to_tokens(
            self._tokenizer("a b", add_special_tokens=False).input_ids
        )
        return any("Ġ" in token for token in probe)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"text holds a lone surrogate at position {error.start}; send valid Unicode"
        ) from error


def _byte_table() -> dict[str, int]:
    """Character -> byte of GPT-2's byte-level alphabet (printable bytes stand for themselves)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_table()
