"""Which functions of ours a streamed chat request passes: to its first kernel, and back per token.

    python -m benchmarks.request_path

A request, and what is said to it, goes from one stack of calls to the next by way of a queue. Counted are
the functions of `server` and `brainstacks` that stand on the stack at each such hand-over, at the first
kernel, and where bytes leave; each once. What they call for help on the way, and return from, is not counted.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2 as httpx

from benchmarks.instruments import options
from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.results import RESULTS, machine, write_results
from brainstacks.base_model import identify_base

NAME = "request_path"
OURS = tuple(str(ROOT / package) + "/" for package in ("server", "brainstacks"))
MOST_FORTH, MOST_BACK = 19, 10
TOKEN = 4
"""The step whose way back is noted."""


FORTH = (
    "until_disconnect",
    "EngineThread.put",
    "StepEngine.add",
    "Composer.compose",
    "Scheduler.add",
    "CpuBackend.run",
)
BACK = ("Outbox.put", "_deliver", "Queue.get", "tagged")
"""Functions that hand over: what stands on the stack when they are called is on the way."""


class Way:
    """Notes the stack at each call of one of `handovers` while it is `on`, on any thread that began later."""

    def __init__(self, handovers: tuple[str, ...]) -> None:
        self.on = False
        self.found: dict[str, None] = {}
        self._handovers = handovers

    def event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and self.on and _name(frame).split(":")[-1].endswith(self._handovers):
            stack = []
            caller: FrameType | None = frame
            while caller is not None:
                if caller.f_code.co_filename.startswith(OURS) and not caller.f_code.co_name.startswith("<"):
                    stack.append(_name(caller))
                caller = caller.f_back
            self.found |= dict.fromkeys(reversed(stack))


def _name(frame: FrameType) -> str:
    code = frame.f_code
    if not code.co_filename.startswith(OURS):
        return code.co_qualname
    where = Path(code.co_filename).relative_to(ROOT).with_suffix("")
    return f"{'.'.join(where.parts)}:{code.co_qualname}"


def ways(
    open_engine: Callable[[], Any], create_app: Callable[[Any], Any], body: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Functions on the way to the first kernel, and back from one token's.

    Args:
        open_engine: gives an `AsyncEngine`; called under the eyes of the profile.
    """
    forth, back, steps = Way(FORTH), Way(BACK), 0

    def event(frame: FrameType, kind: str, argument: Any) -> None:
        forth.event(frame, kind, argument)
        back.event(frame, kind, argument)

    async def run() -> None:
        engine, loop = open_engine(), asyncio.get_running_loop()
        backend, step = engine._engine.backend, engine._engine.step
        compute = backend.run

        def computed(*args: Any) -> Any:
            nonlocal steps
            steps += 1
            logits = compute(*args)
            forth.on, back.on = False, steps == TOKEN
            return logits

        def stepped() -> None:
            if steps in (TOKEN - 1, TOKEN):  # what was said before a step is read before it
                asyncio.run_coroutine_threadsafe(_turns(), loop).result()
                back.on = False
            step()

        backend.run, engine._engine.step = computed, stepped
        transport = httpx.ASGITransport(app=create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            forth.on = True
            reply = await client.post("/v1/chat/completions", json=body)
            reply.raise_for_status()
        await engine.close()

    threading.setprofile(event)
    sys.setprofile(event)
    try:
        asyncio.run(run())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(forth.found), list(back.found)


async def _turns() -> None:
    """More turns of the event loop than what was said takes to its reader."""
    for _ in range(100):
        await asyncio.sleep(0)


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
