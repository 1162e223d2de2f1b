"""Text <-> token ids of a base: the one prompt format of training and serving.

Text of a special token (`<|im_end|>` typed by a user) never becomes that token.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from brainstacks.chat_template import ChatTemplate
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
        self._template = ChatTemplate(tokenizer)
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
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of `messages` ({"role", "content"}, perhaps more) in the base's chat template.

        Args:
            tools: functions that the template is to tell of, as OpenAI has them.
            add_generation_prompt: end with what begins an assistant's answer.
            continue_final_message: end with the last message's content instead, so that it goes on.
            add_special_tokens: put the base's own, such as BOS, around what the template gives.
            template_kwargs: variables of the template; one that is not in `template_variables` does nothing.

        Raises:
            InvalidRequest: the base has no chat template, its template refuses the messages or variables, or
                a variable is not the caller's to set.
        """
        for message in messages:
            _check_unicode(message["content"])
        options = self._template.chosen(template_kwargs or {})
        beside = [{name: m[name] for name in m if name != "content"} for m in messages]
        self._check_no_special_text(chat_template_kwargs=options, tools=tools, messages=beside)
        options["add_generation_prompt"] = add_generation_prompt and not continue_final_message
        if tools:
            options["tools"] = list(tools)
        ids = self._encode_messages(messages, continue_final_message, options)
        if add_special_tokens:
            before, after = self._added_ids
            ids = [*before, *ids, *after]
        return ids

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """What `encode_chat` encodes, as text, less what begins an answer. Raises InvalidRequest likewise."""
        options = {"tools": list(tools)} if tools else {}
        return self._template.render(messages, add_generation_prompt=False, **options)

    def added_token(self, text: str) -> int | None:
        """The token that `text` is as a whole, special or not; None where the base added no such token."""
        found: int | None = self._tokenizer.get_added_vocab().get(text)
        return found

    def _encode_messages(
        self, messages: Sequence[Mapping[str, Any]], continues: bool, options: Mapping[str, Any]
    ) -> list[int]:
        marks = (*self._special_texts, _SENTINEL[0])
        apart = [at for at, m in enumerate(messages) if any(mark in m["content"] for mark in marks)]
        if not apart and not continues:
            return self._encode_template(self._template.render(messages, **options))
        # Render with stand-ins for these contents, and encode template and contents apart.
        last = len(messages) - 1
        stand_ins = {at: _SENTINEL.format(at) for at in (*apart, *([last] if continues else []))}
        rendered = self._template.render(
            [{**m, "content": stand_ins.get(at, m["content"])} for at, m in enumerate(messages)], **options
        )
        if not apart:
            head, found, _ = rendered.rpartition(stand_ins[last])
            if not found:
                raise InvalidRequest(
                    "the chat template leaves out the last message, so it cannot go on; "
                    "leave out continue_final_message",
                    param="continue_final_message",
                )
            return self._encode_template(head + messages[last]["content"])
        ids: list[int] = []
        for at, stand_in in sorted(stand_ins.items()):
            template, found, rendered = rendered.partition(stand_in)
            if not found:
                raise InvalidRequest(
                    "a message holds the text of a special token, and the chat template does not place "
                    "every such message in order; remove that text",
                    param="messages",
                )
            ids += self._encode_template(template)
            ids += self.encode(messages[at]["content"], add_special_tokens=False)
        return ids if continues else ids + self._encode_template(rendered)

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

    def info(self) -> dict[str, Any]:
        """What there is to tell of it: plain JSON values, no paths."""
        tokenizer = self._tokenizer
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "chat_template": getattr(tokenizer, "chat_template", None),
            "chat_template_variables": sorted(self.template_variables),
            "vocab_size": len(tokenizer),
            "eos_token_ids": list(self.eos_token_ids),
            "added_tokens_decoder": {str(i): str(t) for i, t in tokenizer.added_tokens_decoder.items()},
            **{
                name: list(map(str, token)) if isinstance(token, list) else str(token)
                for name, token in tokenizer.special_tokens_map.items()
            },
        }

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
        rendered = self._template.render(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL.format(0)}],
            add_generation_prompt=False,
        )
        tail = self._encode_template(rendered.partition(_SENTINEL.format(0))[2])
        for i, token_id in enumerate(tail):
            if token_id in self.eos_token_ids:
                return tuple(tail[: i + 1])
        return self.eos_token_ids[:1]

    @property
    def template_variables(self) -> frozenset[str]:
        """What `template_kwargs` may set; others do nothing."""
        return self._template.variables

    def _check_no_special_text(self, **params: object) -> None:
        """What a template puts beside the contents is encoded with it."""
        for param, value in params.items():
            text = json.dumps(value, ensure_ascii=False)
            found = next((special for special in self._special_texts if special in text), None)
            if found is not None:
                raise InvalidRequest(
                    f"{param} holds {found!r}, the text of a special token; remove it",
                    param=param,
                )

    @cached_property
    def _added_ids(self) -> tuple[list[int], list[int]]:
        """What the base's tokenizer puts before and behind a text."""
        plain = self._tokenizer("a", add_special_tokens=False).input_ids
        whole = self._tokenizer("a", add_special_tokens=True).input_ids
        extra = len(whole) - len(plain)
        start = next((at for at in range(extra + 1) if whole[at : at + len(plain)] == plain), extra)
        return whole[:start], whole[start + len(plain) :]

    def _encode_template(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids)

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
