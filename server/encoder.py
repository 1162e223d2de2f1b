"""Text to token ids and back, off the event loop, and so that no tenant's long texts hold up another's."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from brainstacks.engine.interface import Engine
from brainstacks.errors import ContextTooLong, InvalidRequest

LONG = 16 << 10
"""Bytes from which on a text waits in the line of long ones."""
SHORT_THREADS = 4
LONG_THREADS = max(1, (os.cpu_count() or 1) // 4)  # the steps want the cores too

T = TypeVar("T")


class Line:
    """Work in `threads` threads; of one tenant at most half of them, so that every other finds the next."""

    def __init__(self, threads: int) -> None:
        self._threads = CapacityLimiter(threads)
        self._own = defaultdict[str, CapacityLimiter](lambda: CapacityLimiter(max(1, threads // 2)))

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """A tenant's further work waits here, and not in the common line, which is first come, first served:
        there each has but its next."""
        async with self._own[tenant]:
            return await to_thread.run_sync(work, limiter=self._threads)


class Encoder:
    """The tokenizer as requests may use it.

    A text is refused before it is encoded where it cannot fit into the context: it has at least as many
    tokens as its bytes fill when each is the longest of the vocabulary.
    """

    def __init__(self, engine: Engine) -> None:
        self._tokenizer = engine.tokenizer
        self._longest = engine.tokenizer.longest_token
        self._model = engine.status.model
        self._short, self._long = Line(SHORT_THREADS), Line(LONG_THREADS)

    async def encode(
        self, text: str, tenant: str, *, add_special_tokens: bool = True, param: str = "prompt"
    ) -> list[int]:
        """Token ids of plain text. Raises ContextTooLong."""
        size = self._size([text], param)
        encode = self._tokenizer.encode
        return await self._run(tenant, size, lambda: encode(text, add_special_tokens=add_special_tokens))

    def end_of(self, text: str) -> str:
        """The end of a text, of at least as many tokens as the context has: all that a truncation keeps."""
        raw = text.encode(errors="surrogatepass")
        most = self._longest * self._model.max_context
        return text if len(raw) <= most else raw[-most:].decode(errors="ignore")

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tenant: str,
        *,
        param: str = "messages",
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[int]:
        """Token ids of a conversation in the base's chat template; options of `Tokenizer.encode_chat`.

        Raises:
            ContextTooLong, InvalidRequest
        """
        texts = [one["content"] + _json(one.get("tool_calls")) for one in messages]
        size = self._size(texts, param) + self._size([_json(tools)], "tools") + 64 * len(messages)
        encode = self._tokenizer.encode_chat
        try:
            return await self._run(tenant, size, lambda: encode(messages, tools=tools, **options))
        except InvalidRequest as error:
            if error.param == "messages":  # which is what a tokenizer calls them
                error.param = param
            raise

    async def decode(self, ids: Sequence[int], tenant: str, param: str) -> str:
        """The text of at most as many tokens as the context holds. Raises InvalidRequest."""
        self._check_count(ids, param)
        return await self._run(tenant, 4 * len(ids), lambda: self._tokenizer.decode(ids))

    async def token_texts(self, ids: Sequence[int], tenant: str, param: str) -> list[str]:
        """Of each of at most as many tokens as the context holds. Raises InvalidRequest."""
        self._check_count(ids, param)
        text = self._tokenizer.token_text
        return await self._run(tenant, 4 * len(ids), lambda: [text(token_id) for token_id in ids])

    def _run(self, tenant: str, size: int, work: Callable[[], T]) -> Awaitable[T]:
        return (self._long if size > LONG else self._short).run(tenant, work)

    def _size(self, texts: Iterable[str], param: str) -> int:
        size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        least, most = -(-size // self._longest), self._model.max_context
        if least > most:
            raise ContextTooLong(
                f"{param} has {size} bytes, which are at least {least} tokens; the context of "
                f"{self._model.name} holds {most}. Shorten it",
                param=param,
            )
        return size

    def _check_count(self, ids: Sequence[int], param: str) -> None:
        most = self._model.max_context
        if len(ids) > most:
            raise InvalidRequest(
                f"{param} has {len(ids)} tokens; texts of at most {most} are given, which is the context",
                param=param,
            )


def _json(value: Sequence[Mapping[str, Any]] | None) -> str:
    """About what a chat template writes of it."""
    return json.dumps(value, ensure_ascii=False) if value else ""
