"""Which functions of ours a streamed chat request passes: to its first kernel, and back per token.

    python -m benchmarks.request_path

Every Python function of `server` and `brainstacks` that runs on the event loop or on the engine's thread is
noted once, in the order of its first call; lambdas, comprehensions and properties are not counted. The way
back is one of a later token, so that nothing happens for the first time.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx2 as httpx

from benchmarks import options
from benchmarks.results import RESULTS, machine, write_results
from brainstacks.base_model import identify_base

NAME = "request_path"
ROOT = Path(__file__).parents[1]
OURS = tuple(str(ROOT / package) + "/" for package in ("server", "brainstacks"))
MOST_FORTH, MOST_BACK = 19, 10
TOKEN = 4
"""The step whose way back is noted."""


class Way:
    """Notes functions while it is `on`, on any thread that began after `watch`."""

    def __init__(self) -> None:
        self.on = False
        self.found: dict[str, None] = {}

    def watch(self) -> None:
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and self.on and code.co_filename.startswith(OURS) and _counts(code, frame):
            where = Path(code.co_filename).relative_to(ROOT).with_suffix("")
            self.found[f"{'.'.join(where.parts)}:{code.co_qualname}"] = None

    def take(self) -> list[str]:
        found, self.found = list(self.found), {}
        return found


def _counts(code: CodeType, frame: FrameType) -> bool:
    if code.co_name.startswith("<"):
        return False
    owner = frame.f_locals.get("self")
    return not isinstance(inspect.getattr_static(type(owner), code.co_name, None), property)


def ways(
    open_engine: Callable[[], Any], create_app: Callable[[Any], Any], body: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Functions on the way to the first kernel, and back from one token's.

    Args:
        open_engine: gives an `AsyncEngine`; called under the eyes of the profile.
    """
    way = Way()
    forth: list[str] = []
    back: list[str] = []
    steps = 0

    async def run() -> None:
        nonlocal forth, back, steps
        engine, loop = open_engine(), asyncio.get_running_loop()
        backend, step = engine._engine.backend, engine._engine.step
        compute = backend.run

        def computed(*args: Any) -> Any:
            nonlocal forth, steps
            steps += 1
            if steps == 1:
                forth = way.take()
                way.on = False
            logits = compute(*args)
            way.on = steps == TOKEN
            return logits

        def stepped() -> None:
            nonlocal back
            if steps == TOKEN and not back:
                # What was said is on its way through the event loop: let it arrive.
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), loop).result()
                way.on = False
                back = way.take()
            step()

        backend.run, engine._engine.step = computed, stepped
        transport = httpx.ASGITransport(app=create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            way.on = True
            reply = await client.post("/v1/chat/completions", json=body)
            reply.raise_for_status()
        await engine.close()

    way.watch()
    try:
        asyncio.run(run())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return forth, back


def main(
    base: options.Base = options.DEFAULT_BASE,
    registry: options.Trained = options.DEMO_REGISTRY,
    output: options.Output = RESULTS,
) -> None:
    """Functions of ours on the way of one routed, streamed chat request."""
    from brainstacks.engine.async_engine import AsyncEngine
    from server.app import create_app
    from server.settings import Settings

    forth, back = ways(
        lambda: AsyncEngine.open(base=base, registry=registry),
        lambda engine: create_app(engine, Settings(base=base, registry=str(registry))),
        {
            "model": identify_base(base).id,
            "messages": [{"role": "user", "content": "What is asthma?"}],
            "max_tokens": 12,
            "stream": True,
        },
    )
    text = "\n".join(
        [
            f"To the first kernel: {len(forth)} (target {MOST_FORTH})",
            *(f"  {name}" for name in forth),
            f"Back, per token: {len(back)} (target {MOST_BACK})",
            *(f"  {name}" for name in back),
        ]
    )
    write_results(NAME, {"machine": machine(), "forth": forth, "back": back}, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
