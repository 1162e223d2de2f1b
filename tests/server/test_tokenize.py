from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.server.byte_tokenizer import ASSISTANT, USER
from tests.server.conftest import error_of

pytestmark = pytest.mark.anyio


async def test_text_becomes_ids_and_ids_become_text(client: httpx2.AsyncClient) -> None:
    reply = await client.post("/tokenize", json={"model": "tiny", "prompt": "hé", "return_token_strs": True})
    assert reply.json() == {
        "count": 3,
        "max_model_len": 256,
        "tokens": [104, 195, 169],
        "token_strs": ["h", "\ufffd", "\ufffd"],
    }
    assert (await client.post("/detokenize", json={"tokens": [104, 195, 169]})).json() == {"prompt": "hé"}


async def test_messages_become_ids_with_and_without_the_generation_prompt(client: httpx2.AsyncClient) -> None:
    messages = [{"role": "user", "content": "h"}]
    reply = await client.post("/tokenize", json={"messages": messages})
    assert reply.json()["tokens"] == [USER, 104, ASSISTANT]
    assert reply.json()["token_strs"] is None
    reply = await client.post("/tokenize", json={"messages": messages, "add_generation_prompt": False})
    assert reply.json()["tokens"] == [USER, 104]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": 5}),
        ("/tokenize", {"prompt": "x", "add_generation_prompt": True}),
        ("/tokenize", {"prompt": "x", "nope": 1}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [260]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": ["1"]}),
        ("/detokenize", {"tokens": [True]}),
        ("/detokenize", {"tokens": [10**30]}),
    ],
)
async def test_wrong_bodies_are_400(client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> None:
    error_of(await client.post(path, json=body), 400)


async def test_an_unknown_model_is_404(client: httpx2.AsyncClient) -> None:
    assert (
        error_of(await client.post("/tokenize", json={"model": "x", "prompt": "y"}), 404)["param"] == "model"
    )
