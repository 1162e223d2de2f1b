"""Chat templates that tell of functions and calls, one of each format, and the tiny tokenizer with them."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken

from brainstacks.tokenizer import ChatTokenizer
from tests.tiny import CHAT_TEMPLATE, END, byte_tokenizer

_CHATML = (
    "{% if tools %}<|im_start|>system\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}"
    "<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_HERMES = _CHATML.replace(
    "CALL",
    "{% if m.content or not loop.first %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}\n</tool_call>',
)

_LLAMA3 = _CHATML.replace(
    "CALL",
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',
)

_MISTRAL = _CHATML.replace(
    "CALL",
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    "{% if loop.first %}[TOOL_CALLS]GAP[{% endif %}"
    '{{ (c.function | tojson)[:-1] }}, "id": "{{ c.id }}"}'
    "{% if loop.last %}]{% else %}, {% endif %}",
)

_MISTRAL_ARGS = _CHATML.replace(
    "CALL", "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
)

TEMPLATES: Mapping[str, str] = {
    "generic": CHAT_TEMPLATE,
    "hermes": _HERMES,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL.replace("GAP", ""),
    "mistral, spaced": _MISTRAL.replace("GAP", " "),
    "mistral-args": _MISTRAL_ARGS,
}


def tokenizer_with(template: str, *, tokens: bool = True) -> ChatTokenizer:
    """Args: tokens: the marks of calls are tokens of their own, Mistral's special ones."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    if tokens and "<tool_call>" in template:
        tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>")])
    if tokens and "[TOOL_CALLS]" in template:
        tokenizer.add_tokens([AddedToken(text, special=True) for text in ("[TOOL_CALLS]", "[ARGS]")])
    return ChatTokenizer(tokenizer, (END,))
