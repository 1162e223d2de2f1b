"""Keys have names and tenants, are read again on SIGHUP, and never show."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError

from server.app import create_app
from server.drain import DrainingServer
from server.keys import Keys, parse
from server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.raw_asgi import RawRequest, send


def bearer(key: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {key}")]


@pytest.mark.parametrize(
    ("text", "name", "tenant"),
    [
        ("secret", "key-1", "key-1"),
        ("alice=secret", "alice", "alice"),
        ("acme/alice=secret", "alice", "acme"),
        ("c2VjcmV0", "key-1", "key-1"),
        ("c2VjcmV0=", "key-1", "key-1"),
        ("c2VjcmV0==", "key-1", "key-1"),
        ("alice=c2VjcmV0==", "alice", "alice"),
        ("a/b/c=d", "key-1", "key-1"),
        ("=secret", "key-1", "key-1"),
        ("/alice=secret", "key-1", "key-1"),
    ],
)
def test_a_key_may_have_a_name_and_a_tenant(text: str, name: str, tenant: str) -> None:
    key = parse(text, "key-1")
    assert (key.name, key.tenant) == (name, tenant)
    assert "secret" not in repr(key)


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        (("a=one", "a=two"), "two keys are named 'a'"),
        (("a=one", "b=one"), "'a' and 'b' are one key"),
        (("one", "key-1=two"), "two keys are named 'key-1'"),
        (("a=two words",), "printable ASCII"),
    ],
)
def test_keys_that_cannot_be_told_apart_are_refused_without_showing_them(
    keys: tuple[str, ...], rule: str
) -> None:
    with pytest.raises(ValidationError, match=rule) as refused:
        Settings(api_key=tuple(map(SecretStr, keys)))
    assert "one'" not in str(refused.value).replace(rule, "")
    assert "words" not in str(refused.value)


class TestFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "keys"
        file.write_text("# the team\n\nalice=pw-one\nacme/bob=pw-two\n")
        return file

    @pytest.mark.parametrize(
        ("content", "rule"),
        [
            (b"", "holds no key"),
            (b"# none\n", "holds no key"),
            (b"a=pw-one\nb=pw- o\n", "line 2"),
            (b"a=\xff\n", "cannot be read"),
            (b"a=pw-one\na=pw-two\n", "two keys are named"),
            (None, "cannot be read"),
        ],
    )
    def test_a_bad_file_keeps_the_old_keys_and_the_log_says_why(
        self, file: Path, content: bytes | None, rule: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys = Keys((), file)
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with caplog.at_level(logging.INFO, "brainstacks.server"):
            keys.reload()
        assert rule in caplog.text
        assert "stay as they are" in caplog.text
        assert "pw-" not in caplog.text
        scope = {"headers": [(b"authorization", b"Bearer pw-two")]}
        caller = keys.caller(scope)
        assert caller is not None
        assert (caller.name, caller.tenant) == ("bob", "acme")

    def test_a_bad_file_at_the_start_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match="cannot be read"):
            Settings(api_key_file=tmp_path / "none")

    @pytest.mark.anyio
    async def test_sighup_rotates_keys_without_a_restart(
        self, file: Path, engine: FakeEngine, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = create_app(engine, settings.model_copy(update={"api_key_file": file}))
        reloaded = asyncio.Event()

        def reload() -> None:
            app.state.context.keys.reload()
            reloaded.set()

        assert (await send(app, "GET", "/v1/models", bearer("pw-one"))).status == 200
        file.write_text("alice=pw-three\n")
        server = DrainingServer(uvicorn.Config(app), engine, 1, reload)
        server._loop = asyncio.get_running_loop()
        with server.capture_signals(), caplog.at_level(logging.INFO, "brainstacks.server"):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait_for(reloaded.wait(), 10)
        assert (await send(app, "GET", "/v1/models", bearer("pw-one"))).status == 401
        assert (await send(app, "GET", "/v1/models", bearer("pw-three"))).status == 200
        assert "the API keys are now: alice" in caplog.text
        assert "pw-" not in caplog.text


@pytest.mark.anyio
class TestTenants:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        keys = ("alice=one", "acme/bob=two", "acme/carol=three")
        return {"api_key": tuple(map(SecretStr, keys)), "admin_key": "admin-secret"}

    async def complete(self, app: FastAPI, key: str, request_id: str, **fields: Any) -> dict[str, Any]:
        body = json.dumps({"model": "tiny", "prompt": "x", **fields}).encode()
        headers = [*bearer(key), ("X-Request-Id", request_id), ("Content-Type", "application/json")]
        request = await send(app, "POST", "/v1/completions", headers, body)
        assert request.status == 200, request.body
        reply: dict[str, Any] = request.json()
        return reply

    async def test_hostile_35_a_routing_record_is_its_tenant_s_alone(self, app: FastAPI) -> None:
        await self.complete(app, "two", "job")
        status = {}
        for key in ("one", "two", "three"):
            status[key] = (await send(app, "GET", "/v1/routing/job", bearer(key))).status
        assert status == {"one": 404, "two": 200, "three": 200}
        await self.complete(app, "one", "job", routing={"mode": "base"})
        assert (await send(app, "GET", "/v1/routing/job", bearer("two"))).json()["mode"] == "routed"

    async def test_the_admin_sees_all_with_their_tenant(self, app: FastAPI) -> None:
        await self.complete(app, "one", "a")
        await self.complete(app, "two", "b")
        listed = (await send(app, "GET", "/admin/requests", bearer("admin-secret"))).json()["requests"]
        assert [(each["request_id"], each["tenant"]) for each in listed] == [("b", "acme"), ("a", "alice")]

    async def test_the_engine_is_told_whose_every_prompt_is(self, app: FastAPI, engine: FakeEngine) -> None:
        await self.complete(app, "three", "a", prompt=["x", "y"], routing={"mode": "routed", "sticky": "s"})
        assert {request.tenant for request in engine.requests} == {"acme"}

    async def test_two_prompts_never_collide_with_another_request_s_id(
        self, app: FastAPI, engine: FakeEngine
    ) -> None:
        await self.complete(app, "one", "job-1")
        await self.complete(app, "one", "job", prompt=["x", "y"])
        assert [request.request_id for request in engine.requests] == ["job-1", "job", "job:1"]
        reply = await self.complete(app, "one", "job:1")
        assert reply["routing"]["request_id"] != "job:1", "no client can choose it"

    async def test_an_id_that_another_tenant_uses_now_is_free_for_this_one(
        self, app: FastAPI, engine: FakeEngine
    ) -> None:
        """Otherwise the reply would tell of the other's request."""
        engine.hold = asyncio.Event()
        headers = [*bearer("one"), ("X-Request-Id", "job"), ("Content-Type", "application/json")]
        running = RawRequest(app, "POST", "/v1/completions", headers)
        running.feed(b'{"model": "tiny", "prompt": "x"}')
        await engine.reached.wait()
        for key, taken in (("two", False), ("one", True), ("nobody", False)):
            reply = await send(app, "GET", "/v1/models", [*bearer(key), ("X-Request-Id", "job")])
            assert (dict(reply.sent[0]["headers"])[b"x-request-id"] != b"job") == taken
        engine.hold.set()
        await running.finished()


@pytest.mark.anyio
class TestMetricsBehindTheAdminKey:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"api_key": (SecretStr("one"),), "admin_key": "admin-secret", "metrics": "admin"}

    async def test_metrics_want_the_admin_key_in_every_spelling_of_their_path(self, app: FastAPI) -> None:
        for path in ("/metrics", "//metrics", "/x/../metrics", "/%6detrics", "/metrics/"):
            assert (await send(app, "GET", path)).status == 401
            assert (await send(app, "GET", path, bearer("one"))).status == 401
        assert (await send(app, "GET", "/metrics", bearer("admin-secret"))).status == 200


@pytest.mark.anyio
async def test_a_reply_before_the_body_is_read_closes_the_connection(app: FastAPI) -> None:
    for method, path, size in (("PUT", "/admin/stacks/x", "9"), ("POST", "/v1/completions", "99999999")):
        refused = RawRequest(app, method, path, [("Content-Length", size)])
        await refused.finished()  # nothing was fed: it did not wait for the body
        assert refused.status in (401, 413)
        assert (b"connection", b"close") in refused.sent[0]["headers"]
    assert (b"connection", b"close") not in (await send(app, "GET", "/health")).sent[0]["headers"]
