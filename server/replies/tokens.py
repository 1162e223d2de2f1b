"""Replies of `/tokenize`, `/detokenize` and `/tokenizer_info`."""

from __future__ import annotations

from pydantic import ConfigDict

from server.replies.reply import Reply


class Tokens(Reply):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(Reply):
    prompt: str


class TokenizerInfo(Reply):
    """Further fields are the base's own: its special tokens by name."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str
    chat_template: str | None
