"""The client asks again on the same connection, and takes no error for an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress

import pytest

from benchmarks.http_share.client import LAST_CHUNK, Plan, Stream, post, run

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'a\r\ndata: {"choices":[]}\n\n\r\n'
ERROR = b'data: {"error":{"message":"it broke"}}\n\n'


class Wire(asyncio.Transport):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


def streamed(pieces: Sequence[bytes]) -> tuple[list[bytes], str | None]:
    """What a stream wrote when it was told these pieces, and why it failed."""

    async def told() -> tuple[list[bytes], str | None]:
        failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stream, wire = Stream(iter([b"first", b"second", b"third"]), failed), Wire()
        stream.connection_made(wire)
        for piece in pieces:
            stream.data_received(piece)
        return wire.written, failed.result() if failed.done() else None

    return asyncio.run(told())


@pytest.mark.parametrize("size", [13, 17, 29, 1000])
def test_the_end_of_an_answer_is_seen_wherever_the_bytes_are_cut(size: int) -> None:
    answer = HEAD + EVENT * 3 + LAST_CHUNK
    cut = [answer[at : at + size] for at in range(0, len(answer), size)]
    assert streamed([*cut, *cut]) == ([b"first", b"second", b"third"], None)
    assert streamed(cut[:-1]) == ([b"first"], None)


@pytest.mark.parametrize("at", [1, 9, len(ERROR)])
def test_an_error_within_a_stream_is_none_of_its_answers(at: int) -> None:
    written, failed = streamed([HEAD, EVENT, ERROR[:at], ERROR[at:], LAST_CHUNK])
    assert failed is not None
    assert "error" in failed
    assert written[0] == b"first"


def test_a_refusal_is_told_as_it_came() -> None:
    written, failed = streamed([b"HTTP/1.1 429 Too Many Requests\r\n\r\nlater"])
    assert failed is not None
    assert failed.startswith("HTTP/1.1 429")
    assert written == [b"first"]


def test_text_that_speaks_of_errors_is_text() -> None:
    said = b"data: " + json.dumps({"choices": [{"text": 'data: {"error":'}]}).encode() + b"\n\n"
    assert streamed([HEAD, said, EVENT]) == ([b"first"], None)


def test_every_stream_asks_its_own_first_and_then_what_is_next() -> None:
    """Two streams, of which the server answers each request at once; after five it closes."""
    asked: list[str] = []
    answering = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has gone
            while len(asked) < 5:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                asked.append(json.loads(await reader.readexactly(length))["ask"])
                writer.write(HEAD + EVENT + LAST_CHUNK)
        writer.close()
        answering.release()

    async def whole() -> str | None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            plan = Plan(host, port, [{"ask": "a"}, {"ask": "b"}], [{"ask": "1"}, {"ask": "2"}])
            failed = await run(plan, asyncio.get_running_loop().create_future())
            for _ in plan.firsts:
                await answering.acquire()
            return failed

    failed = asyncio.run(whole())
    assert failed is not None
    assert failed.startswith("the connection was lost")
    assert {"a", "b"} <= set(asked)
    assert sorted(asked)[:3] == ["1", "1", "2"]


def test_a_plan_goes_over_a_line() -> None:
    plan = Plan("127.0.0.1", 80, [{"max_tokens": 3}], [])
    assert Plan(**json.loads(plan.to_line())) == plan
    assert plan.to_line().count(b"\n") == 1
    assert post("here", {"max_tokens": 3}).endswith(b'Content-Length: 17\r\n\r\n{"max_tokens": 3}')
