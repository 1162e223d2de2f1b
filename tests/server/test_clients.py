"""What foreign clients sent (`python -m tests.conformance`) is answered as the real server answered it."""

from __future__ import annotations

import dataclasses

import httpx2
import pytest

from tests.conformance.recorded import load
from tests.server.byte_tokenizer import EOS, VOCAB, ByteTokenizer
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

RECORDED = load()


class WideTokenizer(ByteTokenizer):
    """Knows the token ids of the base that they asked, too; each is a byte."""

    def token_bytes(self, token_id: int) -> bytes:
        return super().token_bytes(token_id if token_id < VOCAB else token_id % EOS)


@pytest.fixture
def engine() -> FakeEngine:
    """With the name, the ids and the room of that base."""
    engine = FakeEngine()
    engine.model = dataclasses.replace(
        engine.model, name="smollm2-135m-instruct", vocab_size=49152, max_context=8192
    )
    engine.tokenizer = WideTokenizer()
    return engine


@pytest.mark.parametrize("name", dict.fromkeys(one.client for one in RECORDED))
async def test_what_a_client_sends_is_taken(client: httpx2.AsyncClient, name: str) -> None:
    for sent in [one for one in RECORDED if one.client == name]:
        response = await client.post(sent.path, json=sent.body)
        assert response.status_code == sent.status, f"{sent.body}: {response.text}"
        if sent.status == 200:
            assert '"error"' not in response.text
