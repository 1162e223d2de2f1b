"""A real server on a real socket, and real signals."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest

from server import __main__ as entry
from server import log
from server.__main__ import make_server, serve
from server.drain import DrainingServer
from server.settings import Settings
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


class Running:
    """A server that listens, and a client of it."""

    def __init__(self, server: DrainingServer) -> None:
        self.server = server
        self.up = asyncio.Event()
        startup = server.startup

        async def tell(*arguments: object, **options: object) -> None:
            await startup(*arguments, **options)  # type: ignore[arg-type]
            self.up.set()

        server.startup = tell  # type: ignore[method-assign]
        self.task = asyncio.ensure_future(server.serve())

    def client(self) -> httpx2.AsyncClient:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)


@pytest.fixture
async def running(engine: FakeEngine) -> AsyncIterator[Running]:
    each = Running(make_server(engine, Settings(port=0, drain_timeout=5)))
    await asyncio.wait_for(each.up.wait(), 5)
    yield each
    each.server.should_exit = True
    await each.task


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_refuses_new_work_lets_running_requests_finish_and_ends_well(
    running: Running, engine: FakeEngine, sig: signal.Signals
) -> None:
    engine.hold = asyncio.Event()
    body = {"model": "tiny", "prompt": "x", "stream": True}
    async with running.client() as client, client.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        signal.raise_signal(sig)
        await asyncio.wait_for(engine.draining.wait(), 5)
        assert engine.drained == 5
        async with running.client() as other:  # a new connection is still taken
            refused = await other.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            assert (await other.get("/ready")).status_code == 503
            assert (await other.get("/health")).status_code == 200
        engine.hold.set()
        rest = [line async for line in lines]
    assert rest[-2:] == ["data: [DONE]", ""]
    await asyncio.wait_for(running.task, 10)  # and the signal is not raised again: exit code 0
    assert engine.aborted == []


async def test_a_second_signal_does_not_wait(running: Running, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()  # the drain would take for ever
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(engine.draining.wait(), 5)
    assert not running.task.done()
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(running.task, 10)
    assert not engine.hold.is_set(), "nobody let the drain end"


async def test_a_drain_that_fails_still_stops(
    running: Running,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(timeout: float) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(engine, "drain", broken)
    with caplog.at_level(logging.ERROR):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(running.task, 10)
    assert "boom" in caplog.text, "and says why"


async def test_the_engine_is_closed_when_the_server_ends(engine: FakeEngine) -> None:
    task = asyncio.ensure_future(serve(engine, Settings(port=0)))
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        await asyncio.sleep(0)  # until the server has taken over the signals
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(task, 10)
    assert engine.closed


async def test_when_the_engine_ends_by_itself_so_does_the_server_and_says_so(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.problem = "the device does not compute (RuntimeError)"
    engine.over.set()
    assert not await asyncio.wait_for(serve(engine, Settings(port=0)), 10)
    assert engine.closed
    assert engine.problem in caplog.text


def test_the_process_of_an_engine_that_ended_by_itself_exits_with_a_code_of_its_own(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.problem = "broken"
    engine.over.set()
    monkeypatch.setattr(entry, "open_engine", lambda *_: engine)
    monkeypatch.setattr(log, "configure", lambda _: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with pytest.raises(SystemExit) as ended:
        entry.main(["--port", "0"])
    assert ended.value.code == entry.ENGINE_ENDED


def test_a_process_whose_gpu_is_lost_frees_nothing_on_its_way_out(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails in freeing it would abort the process, with another code."""
    engine.problem = "cuda:0 is lost to this process (AcceleratorError)"
    engine.model = replace(engine.model, device="cuda:0")
    engine.over.set()
    codes: list[int] = []

    def at_once(code: int) -> None:
        codes.append(code)
        raise SystemExit("not reached by a process that has ended")

    monkeypatch.setattr(entry, "open_engine", lambda *_: engine)
    monkeypatch.setattr(log, "configure", lambda _: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(logging, "shutdown", lambda: codes.append(-1))
    monkeypatch.setattr(os, "_exit", at_once)
    with pytest.raises(SystemExit, match="not reached"):
        entry.main(["--port", "0"])
    assert codes == [-1, entry.ENGINE_ENDED], "the log is complete"


async def test_a_stream_that_nobody_reads_does_not_hold_up_the_end(engine: FakeEngine) -> None:
    """However full its connection is: when the time for what is on the wire is over, it is closed."""
    engine.reply = "x" * 200
    server = make_server(engine, Settings(port=0))
    server.config.timeout_graceful_shutdown = 0
    running = Running(server)
    # Far more than the buffers of both sides take.
    asked = {"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 200, "logprobs": 5, "n": 8}
    body = json.dumps(asked)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    async with asyncio.timeout(10):
        await running.up.wait()
        listening = server.servers[0].sockets[0]
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of its connections too
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(listening.getsockname())
            deaf.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
            while not any(each.flow.write_paused for each in server.server_state.connections):  # type: ignore[union-attr]
                await asyncio.sleep(0)
            signal.raise_signal(signal.SIGTERM)
            await running.task
            assert not server.servers[0].is_serving()


async def test_hostile_21_a_megabyte_of_headers_is_refused_on_the_wire(running: Running) -> None:
    async with running.client() as client:
        reply = await client.get("/health", headers={"X-Much": "x" * 40_000})
        assert reply.status_code == 431
        assert reply.json()["error"]["code"] == "headers_too_large"
        reply = await client.get("/health", headers={"X-Much": "x" * 1_000_000})
        assert reply.status_code == 400
        assert (await client.get("/health")).status_code == 200


async def test_a_client_that_hangs_up_aborts_its_generation(running: Running, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    body = {"model": "tiny", "prompt": "x", "stream": True}
    async with running.client() as client, client.stream("POST", "/v1/completions", json=body) as reply:
        await anext(reply.aiter_lines())
    while not engine.aborted:
        await asyncio.sleep(0)  # until the server has seen the end of the connection
    assert engine.aborted == [engine.requests[0].request_id]
