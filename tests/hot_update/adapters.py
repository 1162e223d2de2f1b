"""What the suite asks of a server with adapters that come and go, and how this project's server does it.

Another server takes part with a class that does the same: `HOT_UPDATE_SERVER=package.module:Class`, called
without arguments.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import httpx2 as httpx

from tests.soak.server_process import serving
from tests.soak.world import World


class Adapters(Protocol):
    """A server over one base, and two different adapters, `0` and `1`, that answer greedily unlike the base.

    Attributes:
        base: the model name that is answered without any adapter.
    """

    base: str

    def publish(self, name: str, which: int) -> None:
        """Serve adapter `which` under `name`, at once, in place of what was served so."""

    def remove(self, name: str) -> None:
        """Serve nothing under `name` any more."""

    def model(self, name: str) -> str:
        """The model name that asks for the adapter `name`."""

    def complete(self, model: str, prompt: str, tokens: int) -> str:
        """The greedy completion, end-of-sequence ignored. Raises KeyError: the server knows no such model."""

    def stream(self, model: str, prompt: str, tokens: int) -> Iterator[str]:
        """The same, piece by piece as they come."""

    def close(self) -> None: ...


class Brainstacks:
    """A server process of this checkout, over a tiny base with random stacks."""

    def __init__(self) -> None:
        with ExitStack() as opened:
            world = World(Path(opened.enter_context(tempfile.TemporaryDirectory())))
            server = opened.enter_context(serving(world))
            self.base = f"{server.model}:base"
            self._world, self._server = world, server
            key = {"Authorization": f"Bearer {server.admin_key}"}
            self._http = opened.enter_context(httpx.Client(base_url=server.url, timeout=60))
            self._admin = opened.enter_context(httpx.Client(base_url=server.url, headers=key, timeout=60))
            self.close = opened.pop_all().close

    def publish(self, name: str, which: int) -> None:
        content = self._world.file(name, which + 1).path.read_bytes()
        self._admin.put(f"/admin/stacks/{name}", content=content).raise_for_status()

    def remove(self, name: str) -> None:
        self._admin.delete(f"/admin/stacks/{name}").raise_for_status()

    def model(self, name: str) -> str:
        return f"{self._server.model}:{name}"

    def complete(self, model: str, prompt: str, tokens: int) -> str:
        reply = self._http.post("/v1/completions", json=_body(model, prompt, tokens))
        if reply.status_code == 404:
            raise KeyError(model)
        return str(reply.raise_for_status().json()["choices"][0]["text"])

    def stream(self, model: str, prompt: str, tokens: int) -> Iterator[str]:
        body = {**_body(model, prompt, tokens), "stream": True}
        with self._http.stream("POST", "/v1/completions", json=body) as reply:
            for line in reply.raise_for_status().iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))["choices"][0]["text"]


def _body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
