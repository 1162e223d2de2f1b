"""From the parts of a chat answer to the items of the Responses API, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Event = dict[str, Any]


class OutputItems:
    """What one answer is made of: a message, calls of functions. One item grows at a time, the last.

    Args:
        key: part of every item's id.

    Attributes:
        items: as OpenAI has them; those that are complete, and the one that grows.
    """

    def __init__(self, key: str) -> None:
        self.items: list[dict[str, Any]] = []
        self._key = key
        self._call: int | None = None  # which call of the answer grows, if one does
        self._open = False

    def take(self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None) -> Iterator[Event]:
        """The events that a delta of chat gives, or a whole message of it."""
        tokens = list((logprobs or {}).get("content") or ())
        if delta.get("content") or (tokens and not delta.get("tool_calls")):
            yield from self._text(
                delta.get("content") or "", tokens
            )  # a call has no place for log-probabilities
        for call in delta.get("tool_calls") or ():
            yield from self._arguments(call)

    def end(self, finish_reason: str) -> Iterator[Event]:
        """The events that end the answer, which has at least one item."""
        if not self.items:
            yield from self._text("", [])
        yield from self._close("incomplete" if finish_reason == "length" else "completed")

    def break_off(self) -> None:
        """The item that grows will not end."""
        if self._open:
            self.items[-1]["status"] = "incomplete"

    def _text(self, text: str, tokens: list[dict[str, Any]]) -> Iterator[Event]:
        if not self._open or self._call is not None:
            yield from self._close("completed")
            yield self._begin({"type": "message", "role": "assistant", "content": []}, "msg")
            yield self._event("response.content_part.added", content_index=0, part=_part("", []))
            self.items[-1]["content"] = [_part("", [])]
        part = self.items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += tokens
        if text or tokens:
            yield self._event("response.output_text.delta", content_index=0, delta=text, logprobs=tokens)

    def _arguments(self, call: Mapping[str, Any]) -> Iterator[Event]:
        if not self._open or self._call != call["index"]:
            yield from self._close("completed")
            begun = {"type": "function_call", "call_id": call["id"], "name": call["function"]["name"]}
            yield self._begin({**begun, "arguments": ""}, "fc")
            self._call = call["index"]
        arguments = call["function"].get("arguments") or ""
        self.items[-1]["arguments"] += arguments
        if arguments:
            yield self._event("response.function_call_arguments.delta", delta=arguments)

    def _begin(self, item: dict[str, Any], prefix: str) -> Event:
        self._open, self._call = True, None
        self.items.append({"id": f"{prefix}_{self._key}_{len(self.items)}", "status": "in_progress", **item})
        return self._item("response.output_item.added")

    def _close(self, status: str) -> Iterator[Event]:
        if not self._open:
            return
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "message":
            (part,) = item["content"]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", content_index=0, **text)
            yield self._event("response.content_part.done", content_index=0, part=part)
        else:
            yield self._event("response.function_call_arguments.done", arguments=item["arguments"])
        yield self._item("response.output_item.done")

    def _event(self, kind: str, **fields: Any) -> Event:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": kind, **place, **fields}

    def _item(self, kind: str) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, "item": dict(self.items[-1])}


def _part(text: str, tokens: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}
