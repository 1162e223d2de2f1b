"""docs/compatibility.md lists every field that the schemas take, in its class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.schemas import Body, ChatRequest, CompletionRequest, Message, ResponsesRequest
from server.schemas.body import WITHOUT_EFFECT
from server.schemas.items import CallItem, MessageItem, Part, ReasoningItem, ResultItem
from server.schemas.messages import TextPart
from server.schemas.responses import Reasoning, ResponseStreamOptions, TextOptions
from server.schemas.sampling import StreamOptions

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")


def named_under(title: str, row: str = "") -> set[str]:
    """Fields named in the table under `title`, in rows that begin with `row`; of `a.b`, the last part."""
    (section,) = re.findall(rf"^## {title}$(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    rows = "\n".join(line for line in section.splitlines() if line.startswith(f"| {row}" if row else "|"))
    return {name for code in re.findall(r"`([a-z_.]+)", rows) for name in [code.split(".")[-1]]}


@pytest.mark.parametrize("body", [CompletionRequest, ChatRequest, StreamOptions, Message, TextPart])
def test_every_field_is_on_the_page_in_its_class(body: type[Body]) -> None:
    ignored = {name for name, field in body.model_fields.items() if WITHOUT_EFFECT in field.metadata}
    assert ignored <= named_under("Without effect")
    honoured = body.model_fields.keys() - ignored - {"type"}
    assert honoured - {"text"} <= named_under("Honoured")
    assert not ignored & named_under("Honoured")


REQUEST, ITEMS = ("", ", as in chat"), (" in items",)


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        *((body, REQUEST) for body in (ResponsesRequest, TextOptions, Reasoning, ResponseStreamOptions)),
        *((body, ITEMS) for body in (MessageItem, Part, CallItem, ResultItem, ReasoningItem)),
    ],
)
def test_every_field_of_responses_is_on_the_page_in_its_class(body: type[Body], rows: Sequence[str]) -> None:
    fields = body.model_fields
    named = {name for row in rows for name in named_under("Responses", f"honoured{row} |")}
    refused = {name for name, field in fields.items() if field.annotation is type(None)}
    ignored = {name for name, field in fields.items() if WITHOUT_EFFECT in field.metadata}
    assert refused <= named_under("Responses", "refused |")
    assert ignored <= named_under("Responses", f"without effect{rows[0]} |")
    assert not ignored & named or body is ReasoningItem, "its content is not a message's"
    assert fields.keys() - ignored - refused - {"type", "reasoning"} <= named | {"text"}
