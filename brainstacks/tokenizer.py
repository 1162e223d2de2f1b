"""Text <-> token ids of a base: the one prompt format of training and serving.

Text of a special token (`<|im_end|>` typed by a user) never becomes that token.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from brainstacks.errors import InvalidRequest

_SENTINEL = "\ue000{}\ue001"  # private-use characters: no template and no vocabulary gives them a meaning

_TRAINING_TAG = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
"""A block of transformers' own that marks what is trained on; jinja2 alone does not know it."""


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
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of `messages` ({"role", "content"}, perhaps "name") in the base's chat template.

        Args:
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
        options = self._options(template_kwargs or {})
        self._check_no_special_text(options, [message.get("name", "") for message in messages])
        options["add_generation_prompt"] = add_generation_prompt and not continue_final_message
        ids = self._encode_messages(messages, continue_final_message, options)
        if add_special_tokens:
            before, after = self._added_ids
            ids = [*before, *ids, *after]
        return ids

    def _encode_messages(
        self, messages: Sequence[Mapping[str, str]], continues: bool, options: Mapping[str, Any]
    ) -> list[int]:
        apart = self._holds_special_text(messages)
        if not apart and not continues:
            return self._encode_template(self._render(messages, options))
        # Render with stand-ins for the contents, and encode template and contents apart.
        stand_ins = [_SENTINEL.format(i) for i in range(len(messages))]
        if not apart:
            head, found, _ = self._render(
                [*messages[:-1], {**messages[-1], "content": stand_ins[-1]}], options
            ).rpartition(stand_ins[-1])
            if not found:
                raise InvalidRequest(
                    "the chat template leaves out the last message, so it cannot go on; "
                    "leave out continue_final_message",
                    param="continue_final_message",
                )
            return self._encode_template(head + messages[-1]["content"])
        rendered = self._render(
            [{**m, "content": s} for m, s in zip(messages, stand_ins, strict=True)], options
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
        rendered = self._render(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL.format(0)}],
            {"add_generation_prompt": False},
        )
        tail = self._encode_template(rendered.partition(_SENTINEL.format(0))[2])
        for i, token_id in enumerate(tail):
            if token_id in self.eos_token_ids:
                return tuple(tail[: i + 1])
        return self.eos_token_ids[:1]

    @cached_property
    def template_variables(self) -> frozenset[str]:
        """What `template_kwargs` may set: the variables that the chat template reads and nobody else sets."""
        import jinja2.ext
        import jinja2.meta

        if not getattr(self._tokenizer, "chat_template", None):
            return frozenset()
        environment = jinja2.Environment(extensions=[jinja2.ext.loopcontrols])
        template = _TRAINING_TAG.sub("", self._tokenizer.get_chat_template())
        read = jinja2.meta.find_undeclared_variables(environment.parse(template))
        return frozenset(read - environment.globals.keys() - self._reserved)

    @cached_property
    def _reserved(self) -> frozenset[str]:
        """Names in a template that are ours, transformers' or the base's."""
        arguments = inspect.signature(self._tokenizer.apply_chat_template).parameters
        special = self._tokenizer.special_tokens_map
        tokens = {f"{kind}_token" for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
        return frozenset({*arguments, *special, *tokens, "messages", "raise_exception", "strftime_now"})

    def _options(self, template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        refused = sorted(self._reserved.intersection(template_kwargs))
        if refused:
            raise InvalidRequest(
                f"chat_template_kwargs sets {', '.join(refused)}; that is not for requests to set",
                param="chat_template_kwargs",
            )
        return {name: value for name, value in template_kwargs.items() if name in self.template_variables}

    def _check_no_special_text(self, options: Mapping[str, Any], names: Sequence[str]) -> None:
        """What a template puts beside the contents is encoded with it."""
        for param, text in (
            ("chat_template_kwargs", json.dumps(dict(options), ensure_ascii=False)),
            ("messages", "\n".join(names)),
        ):
            found = next((special for special in self._special_texts if special in text), None)
            if found is not None:
                raise InvalidRequest(
                    f"{param} holds {found!r}, the text of a special token; remove it",
                    param=param,
                )

    def _render(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> str:
        import jinja2

        if not getattr(self._tokenizer, "chat_template", None):
            raise InvalidRequest(
                "this base has no chat template; use /v1/completions with a plain prompt", param="messages"
            )
        try:
            return str(
                self._tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **options)
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the chat template refuses the messages: {error}", param="messages"
            ) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            if not options.keys() - {"add_generation_prompt"}:
                raise
            raise InvalidRequest(
                f"the chat template cannot use these chat_template_kwargs: {error}",
                param="chat_template_kwargs",
            ) from error

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
