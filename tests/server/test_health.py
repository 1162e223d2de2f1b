from __future__ import annotations

import math
from dataclasses import replace

import httpx2
import pytest

from brainstacks.engine.facts import Readiness
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_health_is_200_while_the_engine_comes_round_and_503_when_it_is_stuck_or_gone(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    reply = await client.get("/health")
    assert reply.status_code == 200
    assert reply.json() == {
        "status": "ok",
        "backend": "fake",
        "reason": "it is asked for",
        "device": {"name": "cpu", "gpu": None, "state": "ok", "stack_bytes": None, "kv_cache_tokens": 4096},
        "running": 1,
        "waiting": 2,
    }, "nothing of prompts and of what was reused of them"
    for silence, status in ((29.0, 200), (31.0, 503), (math.inf, 503)):
        engine.silence = silence
        reply = await client.get("/health")
        assert reply.status_code == status
        assert (reply.json()["device"]["state"] == "ok") == (status == 200)


async def test_health_says_what_is_wrong_with_the_device(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.problem = "the device does not compute (RuntimeError)"
    reply = await client.get("/health")
    assert reply.status_code == 503
    assert reply.json()["status"] == "failing"
    assert reply.json()["device"]["state"] == engine.problem


async def test_health_and_version_name_a_gpu_and_what_of_its_memory_is_whose(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    name = "NVIDIA Fake (compute capability 9.0, 24 GiB)"
    engine.model = replace(engine.model, device="cuda:1", gpu=name, device_stack_bytes=1 << 30)
    assert (await client.get("/health")).json()["device"] == {
        "name": "cuda:1",
        "gpu": name,
        "state": "ok",
        "stack_bytes": 1 << 30,
        "kv_cache_tokens": 4096,
    }
    model = (await client.get("/version")).json()["model"]
    assert (model["gpu"], model["device_stack_bytes"], model["kv_cache_tokens"]) == (name, 1 << 30, 4096)


async def test_ready_tells_why_not_and_what_is_degraded(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    assert (await client.get("/ready")).json() == {"ready": True, "problems": [], "unrouted": []}
    engine.ready = Readiness(True, ("chat version 2 is corrupt",), ("law: routed requests leave it out",))
    degraded = await client.get("/ready")
    assert degraded.status_code == 200
    assert degraded.json()["problems"] == ["chat version 2 is corrupt"]
    assert degraded.json()["unrouted"] == ["law: routed requests leave it out"]
    engine.ready = Readiness(False, ("no router",))
    assert (await client.get("/ready")).status_code == 503


async def test_while_draining_ready_and_new_work_are_503_with_retry_after_and_health_is_200(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    await engine.drain(1)
    assert (await client.get("/health")).status_code == 200
    ready = await client.get("/ready")
    work = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    error_of(work, 503)
    assert ready.status_code == 503
    assert "retry-after" in ready.headers
    assert work.headers["retry-after"] == "5"


async def test_version_names_the_base_and_the_generation(client: httpx2.AsyncClient) -> None:
    body = (await client.get("/version")).json()
    assert body["version"]
    assert body["generation"] == 7
    assert body["model"]["name"] == "tiny"
    assert body["model"]["fingerprint"] == "f" * 64
