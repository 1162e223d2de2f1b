from __future__ import annotations

from typing import Any

import httpx2
import pytest

from server.app import create_app
from server.fleet.member import Member
from server.fleet.roster import Roster
from server.fleet.states import Place, ReplicaState
from server.settings import Settings
from tests.server.conftest import ADMIN, error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
async def other() -> Roster:
    """Another replica, which is behind."""
    roster = Roster()
    await roster.exchange(ReplicaState("b", 7, {"chat": Place(1, "host"), "math": Place(3, "disk")}))
    return roster


@pytest.fixture
async def client(engine: FakeEngine, settings: Settings, other: Roster) -> Any:
    """Of replica `a`."""
    member = Member("a", engine, other, lambda: b"")
    app = create_app(engine, settings, fleet=member)
    await member.announce()
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://localhost"
    ) as client:
        yield client


async def test_every_reply_tells_whose_it_is(client: httpx2.AsyncClient) -> None:
    for path in ("/health", "/admin/stacks", "/nowhere"):
        assert (await client.get(path)).headers["x-brainstacks-replica"] == "a"


async def test_a_request_for_another_replica_is_refused(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/health", headers={"x-brainstacks-replica": "a"})).status_code == 200
    reply = await client.get("/health", headers={"x-brainstacks-replica": "gone"})
    assert error_of(reply, 404)["code"] == "replica_not_found"


async def test_a_stack_is_ready_when_all_replicas_serve_its_version(client: httpx2.AsyncClient) -> None:
    told = (await client.get("/admin/stacks", headers=ADMIN)).json()
    assert {one["domain"]: one["ready"] for one in told["stacks"]} == {"chat": True, "math": False}
    assert told["replicas"] == [
        {"replica": "a", "generation": 7, "residency": {"chat": "device", "math": "device"}},
        {"replica": "b", "generation": 7, "residency": {"chat": "host", "math": "disk"}},
    ]


async def test_a_change_tells_who_serves_it(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    reply = await client.put("/admin/stacks/math", headers=ADMIN, content=b"file")
    assert (reply.json()["ready"], reply.json()["serving"]) == (False, ["a"])
