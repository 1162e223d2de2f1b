"""Hostile 25: what a key may ask for, by the minute and at one time."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from server.errors import RequestRefused
from server.rate_limit import RateLimits
from server.settings import Settings
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, **options: int) -> RateLimits:
    return RateLimits(Settings.model_validate(options), clock)


def test_without_options_nothing_is_limited_and_nothing_said() -> None:
    made = limits(Clock())
    for _ in range(1000):
        assert made.admit("a", 100, 10**6).headers == {}


def test_requests_come_back_evenly_over_a_minute_and_each_key_has_its_own() -> None:
    clock = Clock()
    made = limits(clock, key_requests_per_minute=6)
    for left in (5, 4, 3, 2, 1, 0):
        assert made.admit("a", 1, 1).headers["x-ratelimit-remaining-requests"] == str(left)
    with pytest.raises(RequestRefused) as refused:
        made.admit("a", 1, 1)
    assert refused.value.status_code == 429
    headers = dict(refused.value.headers or {})
    assert headers["Retry-After"] == "10"
    assert headers["x-ratelimit-limit-requests"] == "6"
    assert headers["x-ratelimit-reset-requests"] == "60.000s"
    made.admit("b", 1, 1)
    clock.now = 10.0
    made.admit("a", 1, 1)
    with pytest.raises(RequestRefused):
        made.admit("a", 1, 1)


def test_tokens_that_were_not_used_come_back_once() -> None:
    made = limits(Clock(), key_tokens_per_minute=100)
    ticket = made.admit("a", 1, 90)
    with pytest.raises(RequestRefused):
        made.admit("a", 1, 11)
    ticket.settle(20)
    ticket.settle(0)
    assert made.admit("a", 1, 80).headers["x-ratelimit-remaining-tokens"] == "0"


def test_what_never_fits_is_refused_without_a_time_to_retry() -> None:
    made = limits(Clock(), key_tokens_per_minute=100, key_sequences=4)
    for sequences, tokens in ((1, 101), (5, 1)):
        with pytest.raises(RequestRefused, match="ask for less") as refused:
            made.admit("a", sequences, tokens)
        assert "Retry-After" not in dict(refused.value.headers or {})


def test_a_refused_request_takes_nothing() -> None:
    made = limits(Clock(), key_requests_per_minute=2, key_sequences=1)
    ticket = made.admit("a", 1, 1)
    for _ in range(5):
        with pytest.raises(RequestRefused, match="sequences"):
            made.admit("a", 1, 1)
    ticket.settle(1)
    assert made.admit("a", 1, 1).headers["x-ratelimit-remaining-requests"] == "0"


def test_what_a_request_comes_to_need_is_taken_beside_what_it_holds_or_not_at_all() -> None:
    made = limits(Clock(), key_tokens_per_minute=100, key_sequences=4, key_requests_per_minute=1)
    ticket = made.admit("a", 2, 40)
    made.extend(ticket, 1, 20)
    for sequences, tokens in ((2, 1), (1, 41)):
        with pytest.raises(RequestRefused):
            made.extend(ticket, sequences, tokens)
    assert ticket.headers["x-ratelimit-remaining-tokens"] == "40"
    ticket.settle(10)
    assert ticket.account.sequences == 0
    assert ticket.account.buckets["tokens"].taken == 10


@pytest.mark.anyio
class TestRequests:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"key_requests_per_minute": 1, "key_sequences": 1}

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"model": "tiny", "prompt": "x"}),
            ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}),
            ("/v1/route", {"prompt": "x"}),
            ("/tokenize", {"prompt": "x"}),
            ("/detokenize", {"tokens": [1]}),
        ],
    )
    async def test_every_route_that_takes_a_prompt_or_tokens_is_a_request_of_its_key(
        self, client: httpx2.AsyncClient, path: str, body: dict[str, Any]
    ) -> None:
        reply = await client.post(path, json=body)
        assert reply.status_code == 200
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"
        error_of(await client.post(path, json=body), 429)

    async def test_an_attribution_that_its_key_has_no_room_for_is_not_even_routed(
        self, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine
    ) -> None:
        routed: list[Any] = []
        monkeypatch.setattr(engine, "route", lambda *asked: routed.append(asked))
        body = {"prompt": "x", "completion": "y", "routing": {"mode": "base"}}
        error_of(await client.post("/v1/attribution", json=body), 429)
        assert not routed


@pytest.mark.anyio
class TestServed:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"key_sequences": 2, "key_tokens_per_minute": 1000}

    async def test_sequences_are_counted_while_they_run_and_freed_however_they_end(
        self, client: httpx2.AsyncClient, engine: FakeEngine
    ) -> None:
        body = {"model": "tiny", "prompt": "x", "n": 2, "max_tokens": 4}
        engine.hold = asyncio.Event()
        first = asyncio.create_task(client.post("/v1/completions", json=body))
        await engine.reached.wait()
        refused = await client.post("/v1/completions", json={**body, "n": 1})
        error = error_of(refused, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-ratelimit-limit-tokens"] == "1000"
        engine.hold.set()
        assert (await first).headers["x-ratelimit-limit-tokens"] == "1000"
        engine.hold = None
        for stream in (False, True):
            reply = await client.post("/v1/completions", json={**body, "stream": stream})
            assert reply.status_code == 200
            assert "x-ratelimit-remaining-tokens" in reply.headers
        engine.fail_after = (1, RuntimeError("broken"))
        assert (await client.post("/v1/completions", json=body)).status_code == 500
        engine.fail_after = None
        assert (await client.post("/v1/completions", json=body)).status_code == 200
