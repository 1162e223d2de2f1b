"""docs/compatibility.md lists every field that the schemas take, in its class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.schemas import Body, ChatRequest, CompletionRequest, Message
from server.schemas.body import WITHOUT_EFFECT
from server.schemas.messages import TextPart
from server.schemas.sampling import StreamOptions

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")


def named_under(title: str) -> set[str]:
    """Fields named in the table under `title`; of `stream_options.x`, the last part."""
    (section,) = re.findall(rf"^## {title}$(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    return {name for code in re.findall(r"`([a-z_.]+)", rows) for name in [code.split(".")[-1]]}


@pytest.mark.parametrize("body", [CompletionRequest, ChatRequest, StreamOptions, Message, TextPart])
def test_every_field_is_on_the_page_in_its_class(body: type[Body]) -> None:
    ignored = {name for name, field in body.model_fields.items() if WITHOUT_EFFECT in field.metadata}
    assert ignored <= named_under("Without effect")
    honoured = body.model_fields.keys() - ignored - {"type"}
    assert honoured - {"text"} <= named_under("Honoured")
    assert not ignored & named_under("Honoured")
