"""Which of the requests that clients sent are kept."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.recorded import Recorded, distinct


def sent(body: Any, client: str = "one", status: int = 200) -> Recorded:
    return Recorded(client, "/v1/chat/completions", status, body)


HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_of_requests_that_differ_in_values_alone_the_first_is_kept() -> None:
    again = {"messages": [{"role": "user", "content": "ho"}] * 2, "model": "n"}
    assert distinct([sent(HI), sent(again)]) == [sent(HI)]


@pytest.mark.parametrize(
    "other",
    [
        sent(HI, client="two"),
        sent(HI, status=404),
        sent({**HI, "stop": None}),
        sent({**HI, "tool_choice": "auto"}),
        sent({**HI, "messages": [{"role": "system", "content": "hi"}]}),
        sent({**HI, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
        sent({**HI, "messages": [*HI["messages"], {"role": "assistant", "content": None}]}),
    ],
)
def test_one_that_differs_otherwise_is_kept_too(other: Recorded) -> None:
    assert distinct([sent(HI), other]) == [sent(HI), other]
