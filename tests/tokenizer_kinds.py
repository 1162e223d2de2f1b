"""Tiny tokenizers of every kind that bases come with, with chat templates as theirs are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.tiny import CHAT_TEMPLATE, byte_tokenizer, sentencepiece_like

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
WITHOUT_GENERATION_PROMPT = CHAT_TEMPLATE.partition("{% if add_generation_prompt %}")[0]

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
)


@dataclass(frozen=True)
class Kind:
    """`after` is what follows an answer, as text; `apart` that no token can reach over a prompt's end."""

    make: Callable[[], Any]
    after: str
    apart: bool = True


def _chat(make: Callable[[], Any], template: str | None) -> Callable[[], Any]:
    def made() -> Any:
        tokenizer = make()
        tokenizer.chat_template = template
        return tokenizer

    return made


def merging() -> Any:
    """Bytes with merges that care for nothing: of two line breaks, of letters, of letters with a space."""
    from tokenizers import models

    from brainstacks.tokenizer import _BYTE_OF

    tokenizer = byte_tokenizer()
    merges = [("Ċ", "Ċ"), ("Ġ", "a"), ("Ġa", "b"), ("a", "b"), ("ab", "a")]
    vocabulary = {**_BYTE_OF, **{"".join(pair): 300 + i for i, pair in enumerate(merges)}}
    tokenizer.backend_tokenizer.model = models.BPE(vocab=vocabulary, merges=merges)
    return tokenizer


def tiktoken_like() -> Any:
    """The same merges, within what a regular expression keeps together, as OpenAI's and Llama 3 do."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = merging()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def sentencepiece() -> Any:
    """With BOS in front of a text, an end, and a space before all that stands between special tokens."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = sentencepiece_like()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def metaspace() -> Any:
    """The same with a space before a whole text alone, as newer files of Llama 2 and Mistral have it."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


KINDS: Mapping[str, Kind] = {
    "bytes, ChatML": Kind(byte_tokenizer, "<|im_end|>"),
    "bytes, no generation prompt": Kind(_chat(byte_tokenizer, WITHOUT_GENERATION_PROMPT), "<|im_end|>"),
    "merging bytes, ChatML": Kind(merging, "<|im_end|>", apart=False),
    "merging bytes, no template": Kind(_chat(merging, None), "<|im_end|>", apart=False),
    "tiktoken-like, ChatML": Kind(tiktoken_like, "<|im_end|>", apart=False),
    "SentencePiece-like, Llama 2": Kind(_chat(sentencepiece, LLAMA2), " </s>"),
    "SentencePiece-like, Zephyr": Kind(_chat(sentencepiece, ZEPHYR), "</s>"),
    "SentencePiece-like, no template": Kind(_chat(sentencepiece, None), "</s>", apart=False),
    "Metaspace, Llama 2": Kind(_chat(metaspace, LLAMA2), " </s>"),
    "Metaspace, Zephyr": Kind(_chat(metaspace, ZEPHYR), "</s>"),
    "Metaspace, no template": Kind(_chat(metaspace, None), "</s>", apart=False),
}
