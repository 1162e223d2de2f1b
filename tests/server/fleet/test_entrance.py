from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from server.fleet.entrance import Entrance, middlewares
from server.fleet.wish import Wish

pytestmark = pytest.mark.anyio


class Serve:
    """Ray Serve and the replicas behind it, as far as the entrance sees them.

    Attributes:
        wishes, bodies, headers: of the requests that came.
        answers: what is answered to them, one after the other; None is a replica lost before a word.
    """

    def __init__(self) -> None:
        self.wishes: list[Wish] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answers: Iterator[Response | None] = iter(())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.headers.append(headers)
        self.wishes.append(Wish.parse(headers["x-session-id"]))
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        self.bodies.append(body)
        if (answer := next(self.answers)) is not None:
            await answer(scope, receive, send)


def told(
    replica: str = "a", routing: str = "routed;chat=0.850;math=0.900", request_id: str = "r1"
) -> Response:
    """A reply as a replica gives it, and with the id that Ray Serve adds."""
    headers = {"x-brainstacks-replica": replica, "x-brainstacks-routing": routing, "x-request-id": request_id}
    response = JSONResponse({"said": "so"}, headers=headers)
    response.raw_headers.append((b"X-Request-ID", b"of-ray"))
    return response


class Broken(Response):
    """A stream whose replica is lost in the middle."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b'data: {"a": 1}\n\n', "more_body": True})


@pytest.fixture
def serve() -> Serve:
    return Serve()


@pytest.fixture
async def client(serve: Serve) -> Any:
    transport = httpx2.ASGITransport(app=Entrance(serve))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def chat(*said: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)]
    return {"model": "tiny", "messages": messages, **fields}


async def test_a_conversation_is_asked_for_where_it_was_with_its_stacks(
    client: httpx2.AsyncClient, serve: Serve
) -> None:
    serve.answers = iter([told("a"), told("b"), told("a")])
    await client.post("/v1/chat/completions", json=chat("hi"))
    await client.post("/v1/chat/completions", json=chat("another"))
    await client.post("/v1/chat/completions", json=chat("hi", "ho", "and now?"))
    assert serve.wishes == [Wish(), Wish(), Wish(None, "a", ("chat", "math"))]


async def test_the_body_arrives_whole(client: httpx2.AsyncClient, serve: Serve) -> None:
    async def parts() -> Any:
        yield b'{"prompt": '
        yield b'"hi"}'

    serve.answers = iter([told(), told()])
    await client.post("/v1/completions", content=parts())
    await client.put("/admin/stacks/math", content=b"x" * 5000)
    assert serve.bodies == [b'{"prompt": "hi"}', b"x" * 5000]


async def test_a_body_too_long_to_be_looked_at_goes_by_load(client: httpx2.AsyncClient, serve: Serve) -> None:
    async def parts() -> Any:
        yield b'{"model": "tiny:math", "prompt": "'
        for _ in range(3):
            yield b"x" * (1 << 19)
        yield b'"}'

    serve.answers = iter([told()])
    await client.post("/v1/completions", content=parts())
    assert serve.wishes == [Wish()]
    assert len(serve.bodies[0]) == 3 * (1 << 19) + 36


async def test_a_body_that_does_not_come_is_the_replicas_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.fleet.entrance.PATIENCE", 0.0)
    reached = asyncio.Event()

    async def replica(scope: Scope, receive: Receive, send: Send) -> None:
        reached.set()
        assert (await receive())["body"] == b"late"
        await told()(scope, receive, send)

    inbox = asyncio.Queue[Message]()
    sent = asyncio.Queue[Message]()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    request = asyncio.create_task(Entrance(replica)(scope, inbox.get, sent.put))
    await asyncio.wait_for(reached.wait(), 5)
    await inbox.put({"type": "http.request", "body": b"late", "more_body": False})
    await request
    assert (await sent.get())["status"] == 200


async def test_a_named_replica_and_named_stacks_are_wished_for(
    client: httpx2.AsyncClient, serve: Serve
) -> None:
    serve.answers = iter([told()])
    headers = {"x-brainstacks-replica": "b"}
    await client.post(
        "/v1/chat/completions", json=chat("hi", routing={"weights": {"math": 1}}), headers=headers
    )
    assert serve.wishes == [Wish("b", None, ("math",))]
    assert serve.headers[0]["x-brainstacks-replica"] == "b"


async def test_a_routing_record_is_asked_of_the_replica_that_has_it(
    client: httpx2.AsyncClient, serve: Serve
) -> None:
    serve.answers = iter([told("b", request_id="r7"), told(), told()])
    await client.post("/v1/chat/completions", json=chat("hi"))
    await client.get("/v1/routing/r7")
    await client.get("/v1/routing/other")
    assert serve.wishes[1:] == [Wish(last="b"), Wish()]


async def test_a_client_cannot_write_a_wish(client: httpx2.AsyncClient, serve: Serve) -> None:
    serve.answers = iter([told(), told()])
    for name in ("x-session-id", "x_session_id"):
        await client.post("/v1/chat/completions", json=chat("hi"), headers={name: '["a","a",["x"]]'})
        assert [key for key in serve.headers[-1] if "session" in key] == ["x-session-id"]
    assert {wish.replica for wish in serve.wishes} == {None}


async def test_an_id_that_no_log_should_have_goes_no_further(
    client: httpx2.AsyncClient, serve: Serve
) -> None:
    serve.answers = iter([told(), told()])
    for given in ("fine.id", "two words"):
        await client.post("/v1/chat/completions", json=chat("hi"), headers={"x-request-id": given})
    assert [headers.get("x-request-id") for headers in serve.headers] == ["fine.id", None]


async def test_a_reply_has_one_request_id(client: httpx2.AsyncClient, serve: Serve) -> None:
    serve.answers = iter([told(request_id="r1")])
    reply = await client.post("/v1/chat/completions", json=chat("hi"))
    assert reply.headers.get_list("x-request-id") == ["r1"]


async def test_what_ray_serve_refuses_is_an_error_of_ours(client: httpx2.AsyncClient, serve: Serve) -> None:
    serve.answers = iter([PlainTextResponse("Request dropped due to backpressure", status_code=503)])
    reply = await client.post("/v1/chat/completions", json=chat("hi"))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.json()["error"]["code"] == "overloaded"


async def test_a_replica_lost_before_it_answers_is_an_error_to_retry(
    client: httpx2.AsyncClient, serve: Serve
) -> None:
    serve.answers = iter([None])
    reply = await client.post("/v1/chat/completions", json=chat("hi"))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.json()["error"]["code"] == "replica_lost"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_a_stream_whose_replica_is_lost_ends_with_an_error_event(
    client: httpx2.AsyncClient, serve: Serve, path: str
) -> None:
    serve.answers = iter([Broken(headers={"x-brainstacks-replica": "a"})])
    reply = await client.post(path, json=chat("hi", stream=True))
    first, *named, last, done = [line for line in reply.text.split("\n") if line]
    assert (first, done) == ('data: {"a": 1}', "data: [DONE]")
    assert named == (["event: error"] if path == "/v1/responses" else [])
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"


async def test_what_is_no_stream_and_breaks_off_is_not_ended_for_it() -> None:
    """Its length was told: a client must see that some is missing."""
    sent: list[Message] = []

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-brainstacks-replica", b"a"), (b"content-length", b"10")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/admin/stacks/a/versions/1/file", "headers": []}
    await Entrance(half)(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_pages_of_ray_serve_itself_pass() -> None:
    entrance = Entrance(PlainTextResponse("success"))
    transport = httpx2.ASGITransport(app=entrance)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/-/healthz")).text == "success"


def test_it_is_what_ray_serve_is_told_to_put_in_front() -> None:
    (only,) = middlewares()
    assert only.cls is Entrance  # type: ignore[comparison-overlap]
