"""The deltas of a chat answer become items, and every event tells of one: begun, grown, done."""

from __future__ import annotations

from typing import Any

import pytest

from server.output_items import OutputItems

TOKEN = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}


def call(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    begun = {} if name is None else {"id": f"call_{index}"}
    named = {} if name is None else {"name": name}
    return {"tool_calls": [{"index": index, **begun, "function": {**named, "arguments": arguments}}]}


def told(output: OutputItems, *deltas: dict[str, Any], reason: str = "stop") -> list[dict[str, Any]]:
    events = [event for delta in deltas for event in output.take(delta, None)]
    return [*events, *output.end(reason)]


def test_a_text_is_one_message_with_one_part() -> None:
    output = OutputItems("k")
    events = told(output, {"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {})
    assert [event["type"] for event in events] == [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    item = {"id": "msg_k_0", "type": "message", "role": "assistant"}
    assert events[0]["item"] == {**item, "status": "in_progress", "content": []}
    assert events[1]["part"] == {**part, "text": ""}
    assert [event["delta"] for event in events[2:4]] == ["Hel", "lo"]
    assert events[4]["text"] == "Hello"
    assert events[5]["part"] == part
    assert events[6]["item"] == {**item, "status": "completed", "content": [part]}
    assert output.items == [events[6]["item"]]
    assert {event.get("item_id", "msg_k_0") for event in events} == {"msg_k_0"}
    assert {event["output_index"] for event in events} == {0}


def test_several_calls_whole_or_in_pieces_are_items_of_their_own_behind_the_text() -> None:
    output = OutputItems("k")
    pieces = [call(0, "", "weather"), call(0, '{"a"'), call(0, ": 1}"), call(1, "{}", "clock")]
    events = told(output, {"content": "Let me see."}, *pieces, reason="tool_calls")
    assert [(item["type"], item["id"], item["status"]) for item in output.items] == [
        ("message", "msg_k_0", "completed"),
        ("function_call", "fc_k_1", "completed"),
        ("function_call", "fc_k_2", "completed"),
    ]
    calls = output.items[1:]
    assert [(one["call_id"], one["name"], one["arguments"]) for one in calls] == [
        ("call_0", "weather", '{"a": 1}'),
        ("call_1", "clock", "{}"),
    ]
    of_first = [(event["type"], event) for event in events if event["output_index"] == 1]
    assert [kind for kind, _ in of_first] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert of_first[0][1]["item"]["arguments"] == ""
    assert of_first[3][1]["arguments"] == '{"a": 1}'
    assert [event["output_index"] for event in events] == sorted(event["output_index"] for event in events)


def test_log_probabilities_are_in_their_delta_and_together_in_the_part() -> None:
    output = OutputItems("k")
    events = [*output.take({"content": ""}, {"content": [TOKEN]})]  # the first byte of a character
    events += [*output.take({"content": "é"}, {"content": [TOKEN]}), *output.end("stop")]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [(event["delta"], event["logprobs"]) for event in deltas] == [("", [TOKEN]), ("é", [TOKEN])]
    assert output.items[0]["content"][0]["logprobs"] == [TOKEN, TOKEN]
    called = OutputItems("k")
    assert not any("logprobs" in event for event in called.take(call(0, "{}", "f"), {"content": [TOKEN]}))


@pytest.mark.parametrize(("reason", "status"), [("length", "incomplete"), ("stop", "completed")])
def test_an_answer_without_text_is_an_empty_message(reason: str, status: str) -> None:
    output = OutputItems("k")
    events = told(output, {"content": ""}, reason=reason)
    assert not any(event["type"] == "response.output_text.delta" for event in events)
    (item,) = output.items
    assert (item["status"], item["content"][0]["text"]) == (status, "")


def test_what_breaks_off_is_incomplete_and_what_was_done_is_not() -> None:
    output = OutputItems("k")
    for delta in ({"content": "a"}, call(0, "{", "f")):
        list(output.take(delta, None))
    output.break_off()
    assert [item["status"] for item in output.items] == ["completed", "incomplete"]
