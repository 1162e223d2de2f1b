"""Hostile 31: no text makes the tokenizer work in vain, and nobody's long texts hold up the others."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx2
import pytest

from server.encoder import LONG, Encoder, Line
from tests.server.byte_tokenizer import ByteTokenizer
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


class Watched(ByteTokenizer):
    """Counts what it encodes, and holds texts that begin with `hold` until `gate` is set."""

    def __init__(self) -> None:
        self.longest_token = 4
        self.encoded: list[str] = []
        self.gate = threading.Event()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.encoded.append(text[:8])
        if text.startswith("hold") and not self.gate.wait(60):
            raise AssertionError("the test never opened the gate")
        return super().encode(text)

    def encode_chat(self, messages: Any, **options: Any) -> list[int]:
        self.encoded.append("chat")
        return super().encode_chat(messages, **options)


@pytest.fixture
def tokenizer(engine: FakeEngine) -> Watched:
    watched = Watched()
    engine.tokenizer = watched
    return watched


MOST = 256 * 4


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "x" * (MOST + 1)}, "prompt"),
        ("/tokenize", {"prompt": "é" * (MOST // 2 + 1)}, "prompt"),
        ("/v1/completions", {"prompt": "x" * (MOST + 1)}, "prompt"),
        ("/v1/route", {"prompt": "x" * (MOST + 1)}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * (MOST // 2 + 1)}] * 2}, "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x" * (MOST + 1)}]},
            "messages",
        ),
    ],
)
async def test_what_cannot_fit_is_refused_before_it_is_encoded(
    tokenizer: Watched, client: httpx2.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    error = error_of(await client.post(path, json={"model": "tiny", **body}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "at least 257 tokens" in error["message"]
    assert "256" in error["message"]
    assert tokenizer.encoded == []


async def test_what_might_fit_is_tokenised_and_its_texts_are_bounded_by_the_context(
    tokenizer: Watched, client: httpx2.AsyncClient
) -> None:
    long = {"prompt": "x" * MOST}
    assert (await client.post("/tokenize", json=long)).json()["count"] == MOST
    refused = await client.post("/tokenize", json={**long, "return_token_strs": True})
    assert error_of(refused, 400)["param"] == "return_token_strs"
    assert error_of(await client.post("/detokenize", json={"tokens": [65] * 257}), 400)["param"] == "tokens"
    assert (await client.post("/detokenize", json={"tokens": [65] * 256})).json() == {"prompt": "A" * 256}


async def test_a_tenant_s_long_texts_hold_up_neither_short_ones_nor_another_tenant_for_more_than_one(
    engine: FakeEngine, tokenizer: Watched
) -> None:
    tokenizer.longest_token = LONG
    encoder = Encoder(engine)
    held = [asyncio.create_task(encoder.encode(f"hold {i}" + "x" * LONG, "one")) for i in range(5)]
    theirs = asyncio.create_task(encoder.encode("theirs" + "x" * LONG, "two"))
    for tenant in ("one", "two"):
        assert await asyncio.wait_for(encoder.encode("short", tenant), 10) == list(b"short")
    tokenizer.gate.set()
    await asyncio.gather(*held, theirs)
    long = [text for text in tokenizer.encoded if text != "short"]
    assert long.index("theirsxx") <= 2, "behind what runs and the next in line, not behind all five"


async def test_a_tenant_takes_at_most_half_of_the_threads() -> None:
    line, gate = Line(4), threading.Event()
    running = 0
    both = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begun() -> None:
        nonlocal running
        running += 1
        if running == 2:
            both.set()

    def work() -> None:
        loop.call_soon_threadsafe(begun)
        if not gate.wait(60):
            raise AssertionError("the test never opened the gate")

    tasks = [asyncio.create_task(line.run("one", work)) for _ in range(6)]
    await both.wait()
    for _ in range(3):
        assert await asyncio.wait_for(line.run("two", lambda: 7), 10) == 7
    assert running == 2
    gate.set()
    await asyncio.gather(*tasks)
    assert running == 6
