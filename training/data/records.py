"""A record: one conversation and the answer to learn, as text without traces of another base's template."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_ROLE = "(?:system|user|assistant|tool|model)"

_TOKEN = "|".join(
    (
        rf"<\|im_start\|>(?:{_ROLE}(?:\n|\Z))?",  # ChatML
        rf"<start_of_turn>(?:{_ROLE}(?:\n|\Z))?",  # Gemma
        rf"<\|start_header_id\|>{_ROLE}<\|end_header_id\|>\n{{0,2}}",  # Llama 3
        r"<\|(?:system|user|assistant)\|>\n?",  # Zephyr
        r"<\|(?:im_end|begin_of_text|end_of_text|endoftext|eot_id|eom_id|end)\|>",
        r"<end_of_turn>",
        r"(?<![\w)\]])\[INST\]|\[/INST\]",  # Llama 2 and Mistral; `x[INST]` is an index in code
        r"<<SYS>>\n?|<</SYS>>",
    )
)
_TOKENS = re.compile(_TOKEN)
_MARKS_BEFORE_TOKEN = re.compile(rf"<(?:/?s|bos|eos)>(?=(?:\s|</?s>)*(?:{_TOKEN}))")
_FIRST_MARK = re.compile(r"\A<(?:s|bos)>")
_LAST_MARK = re.compile(r"<(?:/s|eos)>(?=\s*\Z)")


@dataclass(frozen=True)
class Message:
    """One turn; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One training record.

    Attributes:
        messages: the conversation up to the response; the last message is the user's.
        response: the answer that the loss is taken on.
        rejected: a worse answer, where the data has preference pairs.
    """

    id: str
    messages: tuple[Message, ...]
    response: str
    rejected: str | None = None


def prompt_key(record: Record) -> str:
    """Normalised text of the conversation: records with the same key ask the same.

    NFKC, casefolded, each run of whitespace one space; contents of all messages, in order.
    """
    return _normalised(message.content for message in record.messages)


def opening_key(record: Record) -> str:
    """`prompt_key` up to the first message of the user: the same for all turns of a conversation."""
    first = [message.role for message in record.messages].index("user")
    return _normalised(message.content for message in record.messages[: first + 1])


def question_words(record: Record) -> list[str]:
    """Words of the normalised conversation without its system turns, which whole data sets have in common."""
    return _normalised(m.content for m in record.messages if m.role != "system").split()


def strip_template_tokens(text: str) -> str:
    """`text` without the chat-template tokens of ChatML, Gemma, Llama 2 and 3, Mistral and Zephyr.

    A token goes with the role word and line break of its header; no other whitespace is touched. `<s>` and
    `</s>` are tags of HTML as well: they go before another token, or alone at the start and the end of
    `text`; where both are left, they are a pair that strikes something out, and stay.
    """
    if "<" not in text and "INST]" not in text:
        return text
    text = _TOKENS.sub("", _MARKS_BEFORE_TOKEN.sub("", text))
    if "<s>" in text and "</s>" in text:
        return text
    return _LAST_MARK.sub("", _FIRST_MARK.sub("", text))


def _normalised(contents: Iterable[str]) -> str:
    return " ".join(unicodedata.normalize("NFKC", "\n".join(contents)).casefold().split())
