"""Every change of the registry is in the audit log; what was refused is not."""

from __future__ import annotations

import httpx2
import pytest

from tests.server.conftest import ADMIN
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_a_change_is_told_with_what_it_did_and_from_where(
    client: httpx2.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="brainstacks.audit")

    async def told(method: str, path: str, **how: object) -> str:
        caplog.clear()
        headers = {**ADMIN, "x-request-id": "change-1"}
        reply = await client.request(method, f"/admin/{path}", headers=headers, **how)  # type: ignore[arg-type]
        lines = [record.getMessage() for record in caplog.records if record.name == "brainstacks.audit"]
        assert len(lines) == (method != "GET" and reply.is_success)
        return lines[0] if lines else ""

    put = await told("PUT", "stacks/law", content=b"stack")
    for part in ("PUT /admin/stacks/law: law version 1,", engine.digests["law"], "127.0.0.1", "change-1"):
        assert part in put
    assert "POST /admin/stacks/math/activate: math version 1," in await told(
        "POST", "stacks/math/activate", json={"version": 1}
    )
    assert "PUT /admin/router: router version" in await told("PUT", "router", content=b"router")
    assert "POST /admin/router/activate: router version 1," in await told(
        "POST", "router/activate", json={"version": 1}
    )
    assert "DELETE /admin/stacks/law: law" in await told("DELETE", "stacks/law")
    assert await told("PUT", "stacks/law", content=b"") == ""
    assert await told("DELETE", "stacks/nobody") == ""
    assert await told("GET", "stacks") == ""
