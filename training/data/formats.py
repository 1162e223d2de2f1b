"""The formats that public data sets come in: one row becomes records.

Every reader takes a row (column -> value) and returns turns: (messages, response, rejected). A turn without
messages or without a response is returned as it is; `sources` leaves it out, and counts it. A row that
answers nothing, or in which a tool takes part, is one such turn: no stack learns to call tools.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from brainstacks.errors import ConfigError
from training.data.records import Message, Record, strip_template_tokens
from training.recipe.recipe import FormatName

Row = Mapping[str, Any]
Turn = tuple[tuple[Message, ...], str, str | None]
Reader = Callable[[Row], list[Turn]]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
_TOOL_ROLES = frozenset({"tool", "function", "function_call", "function_response", "observation"})
_NOTHING: Turn = ((), "", None)
_OPTIONAL = frozenset({"input", "system"})
"""Our names of columns that some rows of a data set may lack."""
_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")


class _ToolTurn(Exception):
    """A tool takes part in the row's conversation."""


def read(format: FormatName, row: Row, id: str, columns: Mapping[str, str]) -> list[Record]:
    """Records of one row, without chat-template tokens in their text.

    Args:
        id: of the record; where a row has several, they are `<id>/0`, `<id>/1`, ...
        columns: our name of a column -> the row's own.

    Raises:
        ConfigError: the row lacks a column that `format` needs, or has no sense in it; names the row.
    """
    try:
        return records_of(FORMATS[format], _named(row, columns), id)
    except ConfigError as error:
        raise ConfigError(f"row {id!r} is not in format {format}: {error.message}") from error


def records_of(reader: Reader, row: Row, id: str) -> list[Record]:
    """What `read` does, of a row with the columns that `reader` knows. Raises ConfigError: as that does."""
    try:
        turns = reader(row) or [_NOTHING]
    except _ToolTurn:
        turns = [_NOTHING]
    ids = [id] if len(turns) == 1 else [f"{id}/{i}" for i in range(len(turns))]
    return [_record(name, turn) for name, turn in zip(ids, turns, strict=True)]


def _named(row: Row, columns: Mapping[str, str]) -> Row:
    """`row` with our names besides its own."""
    found = {
        ours: row.get(theirs) if ours in _OPTIONAL else _get(row, theirs) for ours, theirs in columns.items()
    }
    return {**row, **found}


def _record(id: str, turn: Turn) -> Record:
    messages, response, rejected = turn
    return Record(
        id,
        tuple(Message(m.role, strip_template_tokens(m.content)) for m in messages),
        strip_template_tokens(response),
        None if rejected is None else strip_template_tokens(rejected),
    )


# --- readers -------------------------------------------------------------------------------------


def _prompt_response(row: Row) -> list[Turn]:
    return [(_user(_text(row, "prompt")), _text(row, "response"), None)]


def _prompt_completion(row: Row) -> list[Turn]:
    """TRL's: both texts, or both conversations, of which the completion's answers are learnt."""
    completion = _get(row, "completion")
    if isinstance(completion, str | None):
        return [(_prompt(_get(row, "prompt")), completion or "", None)]
    before, after = _prompt(_get(row, "prompt")), _conversation(completion, "role", "content")
    return _answers([*before, *after], [False] * len(before) + _learnt(completion))


def _alpaca(row: Row) -> list[Turn]:
    instruction, context = _text(row, "instruction"), _optional_text(row, "input")
    prompt = f"{instruction}\n\n{context}" if context else instruction
    return [(_user(prompt), _text(row, "output"), None)]


def _messages(row: Row) -> list[Turn]:
    turns = _get(row, "messages")
    return _answers(_conversation(turns, "role", "content"), _learnt(turns))


def _sharegpt(row: Row) -> list[Turn]:
    turns = _get(row, "conversation" if "conversation" in row else "conversations")
    conversation, learnt = _conversation(turns, "from", "value"), _learnt(turns)
    system = _optional_text(row, "system")
    if system.strip() and conversation and conversation[0].role != "system":
        conversation, learnt = [Message("system", system), *conversation], [False, *learnt]
    return _answers(conversation, learnt)


def _gsm8k(row: Row) -> list[Turn]:
    steps, found, number = _CALCULATOR_MARK.sub("", _text(row, "answer")).rpartition("####")
    if not found:
        raise ConfigError("its answer has no line `#### <number>`")
    return [(_user(_text(row, "question")), f"{steps.rstrip()}\nThe answer is {number.strip()}.", None)]


def _medqa(row: Row) -> list[Turn]:
    choices = _choices(_get(row, "options"))
    if not 1 < len(choices) <= len(ascii_uppercase):
        raise ConfigError(f"it has {len(choices)} options; a choice is among 2 to {len(ascii_uppercase)}")
    lines = [f"{letter}. {text}" for letter, (_, text) in zip(ascii_uppercase, choices, strict=False)]
    right = _right_choice(row, choices)
    return [(_user("\n".join([_text(row, "question"), *lines])), lines[right], None)]


def _preference(row: Row) -> list[Turn]:
    history, chosen = _preferred(_get(row, "chosen"))
    other, rejected = _preferred(_get(row, "rejected"))
    if history != other:
        raise ConfigError("`chosen` and `rejected` answer different conversations")
    if not history or history[0].role == "assistant":  # it goes on from the prompt, and does not hold it
        history = (*_prompt(_get(row, "prompt")), *history)
    return [(history, chosen, rejected)]


FORMATS: Mapping[FormatName, Reader] = {
    "prompt_response": _prompt_response,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "gsm8k": _gsm8k,
    "medqa": _medqa,
    "preference": _preference,
}


def format_of(columns: Container[str]) -> FormatName:
    """The format of a file whose rows have these columns, where nobody says: one that TRL takes, or ours."""
    if "chosen" in columns:
        return "preference"
    if "response" not in columns and "completion" in columns:
        return "prompt_completion"
    return "messages" if "messages" in columns and "prompt" not in columns else "prompt_response"


# --- parts ---------------------------------------------------------------------------------------


def _get(row: Row, key: str) -> Any:
    if key not in row:
        raise ConfigError(
            f"no {key!r}; it has {', '.join(map(str, row))}. Name its columns under `columns:`, or take the "
            "`format:` that fits (with --data: prompt and response, prompt and completion, messages, or "
            "chosen and rejected)"
        )
    return row[key]


def _text(row: Row, key: str) -> str:
    """A missing value (None) is an empty text."""
    value = _get(row, key)
    if not isinstance(value, str | None):
        raise ConfigError(f"{key!r} is a {type(value).__name__}; it is text")
    return value or ""


def _optional_text(row: Row, key: str) -> str:
    return _text(row, key) if key in row else ""


def _user(content: str) -> tuple[Message, ...]:
    return (Message("user", content),) if content.strip() else ()


def _conversation(value: Any, role_key: str, content_key: str) -> list[Message]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"its conversation is a {type(value).__name__}; it is a list of turns")
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise ConfigError(f"a turn is a {type(turn).__name__}; it has {role_key!r} and {content_key!r}")
        if role_key not in turn:
            raise ConfigError(
                f"a turn has {', '.join(map(str, turn))} and no {role_key!r}; turns of `messages` have role "
                "and content, those of `sharegpt` from and value: take the format that fits"
            )
        given = turn[role_key]
        name = str(given).lower()
        if name in _TOOL_ROLES:
            raise _ToolTurn
        if name not in _ROLES:
            raise ConfigError(f"a turn's {role_key} is {given!r}; it is one of {', '.join(_ROLES)}")
        messages.append(Message(_ROLES[name], _text(turn, content_key)))
    return messages


def _learnt(turns: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which turns may be learnt: an answer marked with `weight: 0` or `train: false` is context alone."""
    return [turn.get("weight") != 0 and turn.get("train") is not False for turn in turns]


def _answers(conversation: Sequence[Message], learnt: Sequence[bool]) -> list[Turn]:
    """A turn for each answer to learn, with what precedes it; one that follows no user's message has no
    prompt."""
    turns: list[Turn] = []
    before: list[Message] = []
    for message, learn in zip(conversation, learnt, strict=True):
        asked = bool(before) and before[-1].role == "user"
        if message.role == "assistant" and learn:
            turns.append((tuple(before) if asked else (), message.content, None))
        if message.role != "assistant" or asked:
            before.append(message)
    return turns


def _choices(options: Any) -> list[tuple[str, str]]:
    """(key, text) of each option: from {key: text}, [text] or [{"key", "value"}]."""
    if isinstance(options, Mapping):
        return [(str(key), str(text)) for key, text in options.items() if text is not None]
    if isinstance(options, str) or not isinstance(options, Sequence):
        raise ConfigError(f"'options' is a {type(options).__name__}; it is a mapping or a list")
    if all(isinstance(option, Mapping) for option in options):
        return [(_text(option, "key"), _text(option, "value")) for option in options]
    return [(ascii_uppercase[i : i + 1], str(text)) for i, text in enumerate(options)]


def _right_choice(row: Row, choices: Sequence[tuple[str, str]]) -> int:
    """Place of the right option: `answer_idx` or `answer` is its key, its text, or its number from 0."""
    names: tuple[list[Any], ...] = (*map(list, zip(*choices, strict=True)), list(range(len(choices))))
    for answer in (row.get("answer_idx"), row.get("answer")):
        for known in names:
            if answer in known:
                return known.index(answer)
    given = {name: row[name] for name in ("answer_idx", "answer") if name in row}
    raise ConfigError(f"its {given} names no option, by key ({', '.join(names[0])}), text or number from 0")


def _preferred(value: Any) -> tuple[tuple[Message, ...], str]:
    """(conversation before it, answer) of `chosen` or `rejected`: a text, or messages that end with it."""
    if isinstance(value, str):
        return (), value
    conversation = _conversation(value, "role", "content")
    if not conversation or conversation[-1].role != "assistant":
        raise ConfigError("the messages of `chosen` and `rejected` end with the assistant's answer")
    return tuple(conversation[:-1]), conversation[-1].content


def _prompt(value: Any) -> tuple[Message, ...]:
    return (
        _user(value or "")
        if isinstance(value, str | None)
        else tuple(_conversation(value, "role", "content"))
    )
