"""A tokenizer of bytes, for the fake engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

EOS = 256
USER, ASSISTANT, SYSTEM = 257, 258, 259
VOCAB = 260


class ByteTokenizer:
    """Ids 0..255 are bytes; 256.. are special tokens, which no text can produce."""

    longest_token = 1
    names: Mapping[int, str] = {EOS: "<eos>", USER: "<user>", ASSISTANT: "<assistant>", SYSTEM: "<system>"}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    template_variables = frozenset({"enable_thinking"})

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
        roles = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}
        ids = [i for each in messages for i in (roles[each["role"]], *each["content"].encode())]
        ids = [EOS, *ids] if add_special_tokens else ids
        ids += b"think" if (template_kwargs or {}).get("enable_thinking") else b""
        return [*ids, ASSISTANT] if add_generation_prompt and not continue_final_message else ids

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        return "a template that knows nothing of tools"

    def added_token(self, text: str) -> int | None:
        return None

    def info(self) -> dict[str, Any]:
        return {"tokenizer_class": "ByteTokenizer", "chat_template": None}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        kept = [i for i in ids if not (skip_special_tokens and i >= EOS)]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self.names[token_id].encode() if token_id >= EOS else bytes([token_id])
