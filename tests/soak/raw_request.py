"""A request as bytes, and paths with a body that is right for each."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from tests.soak.server_process import Server


def request(
    target: str | bytes, body: bytes = b"", *, method: str = "POST", headers: Mapping[str, str | bytes] = {}
) -> bytes:
    """A request that asks for the connection to be closed; `headers` replace the usual ones."""
    usual = {
        "Host": "localhost",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    path = target.encode("utf-8", "surrogatepass") if isinstance(target, str) else target
    lines = [method.encode() + b" " + path + b" HTTP/1.1"]
    for name, value in {**usual, **headers}.items():
        lines.append(name.encode() + b": " + (value.encode("latin-1") if isinstance(value, str) else value))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def good_body(pick: random.Random, server: Server) -> tuple[str, dict[str, Any]]:
    """A path, and a body that is right for it."""
    short: dict[str, Any] = {"model": server.model, "max_tokens": 2, "temperature": 0}
    return pick.choice(
        [
            ("/v1/completions", {**short, "prompt": "hello"}),
            ("/v1/chat/completions", {**short, "messages": [{"role": "user", "content": "hello"}]}),
            ("/v1/route", {"prompt": "hello"}),
            ("/tokenize", {"prompt": "hello"}),
            ("/detokenize", {"tokens": [104, 105]}),
        ]
    )
