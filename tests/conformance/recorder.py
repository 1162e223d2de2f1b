"""A relay in front of the server that notes what clients send, and passes everything on as it is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2 as httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tests.conformance.recorded import Recorded


class Recorder:
    """The relay.

    Attributes:
        url: where it listens, without a slash at the end.
        client: the one that is asking now.
        requests: those with a JSON body, in order.
    """

    def __init__(self, upstream: str) -> None:
        self.url = self.client = ""
        self.requests: list[Recorded] = []
        self._upstream = httpx.URL(upstream)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"this relays http alone, and not {scope['type']}")
        request = Request(scope, receive)
        body = await request.body()
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        url = self._upstream.copy_with(raw_path=scope["raw_path"] + query)
        async with (
            httpx.AsyncClient(timeout=None) as client,
            client.stream(request.method, url, headers=request.headers.raw, content=body) as reply,
        ):
            if body:
                self.requests.append(
                    Recorded(self.client, request.url.path, reply.status_code, json.loads(body))
                )
            relayed = StreamingResponse(reply.aiter_raw(), reply.status_code, headers=dict(reply.headers))
            await relayed(scope, receive, send)


@contextmanager
def recording(upstream: str) -> Iterator[Recorder]:
    """A relay to `upstream` on a free port, for as long as the block lasts."""
    recorder = Recorder(upstream)
    config = uvicorn.Config(
        recorder, port=0, lifespan="off", log_level="warning", date_header=False, server_header=False
    )
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    recorder.url = "http://{}:{}".format(*socket.getsockname())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.should_exit = True
        thread.join()
