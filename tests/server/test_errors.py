from __future__ import annotations

import json

import httpx2
import pytest

from brainstacks import errors
from brainstacks.errors import BrainstacksError
from server.errors import STATUS, reply, status_of
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

EXPECTED = {
    "InvalidRequest": 400,
    "ContextTooLong": 400,
    "NotFound": 404,
    "ModelNotFound": 404,
    "DomainNotFound": 404,
    "VersionNotFound": 404,
    "RecordNotFound": 404,
    "InvalidArtifact": 400,
    "ArtifactTooLarge": 413,
    "IncompatibleArtifact": 409,
    "Conflict": 409,
    "StaleGeneration": 412,
    "StorageFull": 507,
    "StorageUnwritable": 503,
    "CorruptBlob": 503,
    "RetryLater": 503,
    "Overloaded": 429,
    "Unavailable": 503,
    "EngineFailure": 500,
    "ConfigError": 500,
    "UnsupportedModel": 500,
    "BrainstacksError": 500,
}
CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, BrainstacksError)
}


def test_every_error_class_has_its_status() -> None:
    assert {name: status_of(cls("x"))[0] for name, cls in CLASSES.items()} == EXPECTED


def test_the_table_has_no_row_for_a_class_that_is_gone() -> None:
    assert set(STATUS) <= set(CLASSES.values())


def test_a_new_subclass_takes_its_nearest_ancestors_row() -> None:
    class TooManyStacks(errors.Overloaded):
        pass

    assert status_of(TooManyStacks("x")) == STATUS[errors.Overloaded]


@pytest.mark.parametrize("cls", CLASSES.values())
def test_every_reply_has_the_four_fields(cls: type[BrainstacksError]) -> None:
    response = reply({"type": "http"}, cls("what, why, way out", param="p"))
    body = json.loads(bytes(response.body))
    assert body["error"]["message"] == "what, why, way out"
    assert body["error"]["param"] == "p"
    assert body["error"]["code"] == cls.default_code
    assert body["error"]["type"] == status_of(cls("x"))[1]


def test_errors_that_pass_by_themselves_say_when() -> None:
    response = reply({"type": "http"}, errors.Overloaded("full", retry_after=7))
    assert response.headers["retry-after"] == "7"
    assert "retry-after" not in reply({"type": "http"}, errors.Conflict("x")).headers


@pytest.mark.anyio
async def test_404_and_405_have_the_shape_of_every_error(client: httpx2.AsyncClient) -> None:
    for path in ("/nope", "/v1/nope", "/v1/chat", "/v1/models//", "/inspector/nope.js", "/docs/x"):
        error_of(await client.get(path), 404)
    for method, path in (
        ("GET", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/health"),
        ("PUT", "/"),
        ("POST", "/inspector/inspector.js"),
        ("BREW", "/v1/chat/completions"),
    ):
        reply_ = await client.request(method, path)
        assert error_of(reply_, 405)["code"] == "method_not_allowed"


@pytest.mark.anyio
async def test_a_long_value_is_cut_in_the_message(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    body = {"model": "tiny", "prompt": "x", "temperature": "9" * 10_000}
    assert len(error_of(await client.post("/v1/completions", json=body), 400)["message"]) < 300
    body = {"model": "m" * 10_000, "prompt": "x"}
    assert len(error_of(await client.post("/v1/completions", json=body), 404)["message"]) < 400
    unknown = {"model": "tiny", "prompt": "x", "f" * 10_000: 1}
    assert len((await client.post("/v1/completions", json=unknown)).text) < 1000
    assert engine.requests == []


@pytest.mark.anyio
async def test_the_first_thing_said_is_the_unknown_field(client: httpx2.AsyncClient) -> None:
    error = error_of(await client.post("/v1/completions", json={"model": 5, "tools": []}), 400)
    assert error["param"] == "tools"
    assert error["code"] == "unsupported_parameter"
    assert "'tools' is not supported here; leave it out. model is 5: " in error["message"]
