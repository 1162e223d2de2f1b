"""The log: a line a record, in both formats; a request's line says what it was and holds no secret."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from brainstacks.errors import EngineFailure
from server.log import FIELDS, JsonFormatter, TextFormatter, access
from tests.server.conftest import ADMIN
from tests.server.fake_engine import FakeEngine

KEY = {"Authorization": "Bearer sk-secret"}
PROMPT = "a prompt that nobody is to read"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}


def record(message: str = "said", **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("brainstacks.x", logging.INFO, "/some/where.py", 1, message, (), None)
    vars(made).update(fields)
    return made


def failed(message: str = "broken") -> logging.LogRecord:
    made = record()
    try:
        json.loads("{")  # a file of the standard library is in the trace
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def test_json_is_one_object_a_line_whatever_the_message_holds() -> None:
    line = JsonFormatter().format(record('two\nlines\u2028and a quote "', request_id="r"))
    assert len(line.splitlines()) == 1
    shown = json.loads(line)
    assert shown["message"] == 'two\nlines\u2028and a quote "'
    assert (shown["level"], shown["logger"], shown["request_id"]) == ("INFO", "brainstacks.x", "r")
    assert shown["time"].endswith("+00:00")


def test_only_known_fields_are_shown() -> None:
    """uvicorn's own records carry their message again, in colours."""
    made = record(color_message="\x1b[1msaid", key="alice")
    assert set(json.loads(JsonFormatter().format(made))) == {"time", "level", "logger", "message", "key"}
    assert TextFormatter().format(made).endswith("INFO brainstacks.x: said key=alice")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_traces_name_files_as_python_finds_them(formatter: logging.Formatter) -> None:
    text = formatter.format(failed())
    assert "json/decoder.py" in text
    assert "JSONDecodeError" in text
    assert f"{sys.base_prefix}" not in text
    assert 'File "/' not in text
    assert 'File \\"/' not in text


def test_every_logger_of_the_process_and_its_warnings_write_in_the_format_that_was_chosen() -> None:
    code = (
        "import logging, warnings; from server import log; log.configure('json');"
        "logging.getLogger('uvicorn.error').info('Started server process [%d]', 7);"
        "warnings.warn('old')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    started, warned = map(json.loads, ran.stderr.splitlines())
    assert (started["message"], started["logger"]) == ("Started server process [7]", "uvicorn.error")
    assert (warned["level"], warned["logger"]) == ("WARNING", "py.warnings")
    assert "old" in warned["message"]


@pytest.mark.anyio
class TestAccess:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"admin_key": "admin-secret", "api_key": "team/alice=sk-secret"}

    @pytest.fixture
    def shown(self, caplog: pytest.LogCaptureFixture) -> Any:
        """The lines of the access log so far, as JSON gives them."""
        caplog.set_level(logging.INFO)
        formatter = JsonFormatter()
        return lambda: [
            json.loads(formatter.format(each)) for each in caplog.records if each.name == access.name
        ]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_generation_says_whose_it_was_how_composed_and_how_much(
        self, client: httpx2.AsyncClient, shown: Any, stream: bool
    ) -> None:
        body = {**CHAT, "max_tokens": 3, "stream": stream}
        await client.post("/v1/chat/completions", json=body, headers={**KEY, "x-request-id": "r1"})
        (line,) = shown()
        assert set(line) - {"time", "level", "logger", "message"} <= set(FIELDS)
        assert line.pop("duration") >= 0
        assert {name: line.get(name) for name in FIELDS if name in line} == {
            "request_id": "r1",
            "key": "alice",
            "client": "127.0.0.1",
            "route": "/v1/chat/completions",
            "status": 200,
            "composition": "routed;chat=0.900;math=0.450",
            "prompt_tokens": len(PROMPT) + 2,
            "completion_tokens": 3,
            "finish_reason": "length",
        }

    async def test_neither_prompt_nor_text_nor_key_nor_query_is_in_it(
        self, client: httpx2.AsyncClient, shown: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        await client.post("/v1/chat/completions?key=sk-secret", json=CHAT, headers=KEY)
        await client.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT}, headers=KEY)
        await client.post("/v1/route", json={"prompt": PROMPT}, headers=KEY)
        assert len(shown()) == 3
        for each in caplog.records:
            if each.name.startswith("httpx"):  # the client's own
                continue
            for formatter in (JsonFormatter(), TextFormatter()):
                text = formatter.format(each)
                assert "secret" not in text
                assert PROMPT not in text
                assert "Hello" not in text

    async def test_a_path_cannot_write_a_line_of_its_own(
        self, client: httpx2.AsyncClient, shown: Any
    ) -> None:
        await client.get("/x%0AINFO%20forged")
        (line,) = shown()
        assert line["message"] == "GET /x%0AINFO%20forged 404"
        assert line["error"] == "not_found"
        assert "route" not in line

    async def test_other_spellings_are_logged_under_the_route_that_they_mean(
        self, client: httpx2.AsyncClient, shown: Any
    ) -> None:
        await client.head("/health/")
        await client.get("/admin/stacks/chat", headers=ADMIN)
        await client.post("/v1/completions", content=b"{", headers=KEY)
        assert [line["route"] for line in shown()] == ["/health", "/admin/stacks/{domain}", "/v1/completions"]

    async def test_what_breaks_a_stream_off_is_named_though_its_status_was_200(
        self, client: httpx2.AsyncClient, engine: FakeEngine, shown: Any
    ) -> None:
        engine.fail_after = (1, EngineFailure("The step failed"))
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=KEY)
        (line,) = shown()
        assert (line["status"], line["error"], line["finish_reason"]) == (200, "engine_failure", "abort")

    async def test_a_request_whose_client_left_is_in_it_with_what_it_used(
        self, client: httpx2.AsyncClient, engine: FakeEngine, shown: Any
    ) -> None:
        engine.hold = asyncio.Event()
        task = asyncio.ensure_future(client.post("/v1/chat/completions", json=CHAT, headers=KEY))
        await engine.reached.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (line,) = shown()
        assert (line["status"], line["finish_reason"], line["completion_tokens"]) == (499, "abort", 1)

    async def test_a_failure_and_a_change_of_the_registry_name_their_request(
        self, client: httpx2.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        engine.refuse = RuntimeError("boom")
        await client.post("/v1/chat/completions", json=CHAT, headers={**KEY, "x-request-id": "bad"})
        await client.put("/admin/stacks/law", content=b"x", headers={**ADMIN, "x-request-id": "put"})
        told = {each.name: json.loads(JsonFormatter().format(each)) for each in caplog.records}
        assert told["brainstacks.server"]["request_id"] == "bad"
        assert "boom" in told["brainstacks.server"]["exception"]
        assert told["brainstacks.audit"]["request_id"] == "put"
