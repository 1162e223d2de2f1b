from __future__ import annotations

import httpx2
import pytest

from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_every_servable_name_is_listed_with_its_parent_and_domains(client: httpx2.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    cards = {card["id"]: card for card in body["data"]}
    assert list(cards) == ["tiny", "tiny:base", "tiny:ungated", "tiny:chat", "tiny:math"]
    assert cards["tiny"] == {
        "id": "tiny",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "brainstacks",
        "root": "tiny",
        "parent": None,
        "max_model_len": 256,
        "domains": ["chat", "math"],
        "generation": 7,
    }
    assert {name: card["parent"] for name, card in cards.items() if name != "tiny"} == dict.fromkeys(
        list(cards)[1:], "tiny"
    )
    assert cards["tiny:base"]["domains"] == []
    assert cards["tiny:ungated"]["domains"] == ["chat", "math"]
    assert cards["tiny:math"]["domains"] == ["math"]


async def test_one_name_is_the_same_card(client: httpx2.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert [(await client.get(f"/v1/models/{card['id']}")).json() for card in listed] == listed


@pytest.mark.parametrize("name", ["other", "tiny:", "tiny:nope", "TINY", "org/tiny", "tiny:chat:chat"])
async def test_an_unknown_name_is_404_and_never_the_base(
    client: httpx2.AsyncClient, engine: FakeEngine, name: str
) -> None:
    assert error_of(await client.get(f"/v1/models/{name}"), 404)["code"] == "model_not_found"
    reply = await client.post("/v1/completions", json={"model": name, "prompt": "x"})
    error = error_of(reply, 404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert engine.requests == []


async def test_a_deleted_domain_is_no_longer_listed(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    await engine.stacks.delete("chat")
    names = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
    assert "tiny:chat" not in names
    assert "tiny:math" in names
