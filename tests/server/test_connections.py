"""Hostile 32, 34: connections that say nothing, or stop reading, hold up nobody. Real sockets."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator

import pytest

from server.__main__ import make_server
from server.connections import RESERVED_FILES, limited
from server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.test_drain import Running

pytestmark = pytest.mark.anyio

Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def running(engine: FakeEngine) -> AsyncIterator[Running]:
    settings = Settings(port=0, drain_timeout=0.2, max_connections=4, header_timeout=0.3)
    each = Running(make_server(engine, settings))
    await asyncio.wait_for(each.up.wait(), 5)
    yield each
    each.server.should_exit = True
    await each.task


async def connect(running: Running, sent: bytes = b"") -> Connected:
    port = running.server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def closed(connected: Connected) -> bytes:
    """What comes until the server closes."""
    try:
        return await asyncio.wait_for(connected[0].read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        connected[1].close()


async def test_a_new_connection_is_served_past_the_most_that_say_nothing(running: Running) -> None:
    idle = [await connect(running) for _ in range(20)]
    async with running.client() as client:
        assert (await client.get("/health")).status_code == 200
    assert len(running.server.server_state.connections) <= 4
    for each in idle:
        assert await closed(each) == b""


async def test_of_many_that_are_accepted_in_one_turn_each_takes_the_place_of_another(
    running: Running,
) -> None:
    port = running.server.servers[0].sockets[0].getsockname()[1]
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]  # the loop stands meanwhile
    async with running.client() as client:
        assert (await client.get("/health")).status_code == 200
    assert len(running.server.server_state.connections) <= 4
    for each in silent:
        each.close()


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: y"])
async def test_headers_that_do_not_come_are_not_waited_for(running: Running, sent: bytes) -> None:
    assert await closed(await connect(running, sent)) == b""


async def test_headers_a_byte_at_a_time_get_no_more_time_than_others(running: Running) -> None:
    connected = await connect(running, b"GET /health HTTP/1.1\r\nX: ")
    ended = asyncio.create_task(closed(connected))
    while not ended.done():
        connected[1].write(b"y")
        await asyncio.wait([ended], timeout=0.02)
    assert await ended == b""


async def test_where_all_are_busy_the_new_one_is_closed_and_the_busy_ones_finish(
    running: Running, engine: FakeEngine
) -> None:
    engine.hold = asyncio.Event()
    body = json.dumps({"model": "tiny", "prompt": "x"}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    busy = [await connect(running, head + body) for _ in range(4)]
    while len(engine.requests) < 4:
        await asyncio.sleep(0)
    assert await closed(await connect(running)) == b""
    await asyncio.sleep(0)
    engine.hold.set()
    for each in busy:
        assert b" 200 OK" in await closed(each)


async def test_a_body_is_not_read_after_a_refusal(running: Running) -> None:
    head = b"PUT /admin/stacks/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n"
    answer = await closed(await connect(running, head))
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"connection: close" in answer.lower()


async def test_what_is_no_http_is_answered_in_the_shape_of_all_errors(running: Running) -> None:
    for sent in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000):
        answer = await closed(await connect(running, sent))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_files_are_left_for_everything_else() -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert limited(files * 2, 1).most == files - RESERVED_FILES
    assert limited(3, 1).most == 3


@pytest.mark.parametrize("host", [b"localhost", b"elsewhere"])
async def test_a_body_that_breaks_off_as_http_is_answered_once(
    running: Running, host: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where its request is refused before the body, at the same moment."""
    head = b"POST /v1/route HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n" % host
    answer = await closed(await connect(running, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"))
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 4") == 1
    await asyncio.sleep(0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
