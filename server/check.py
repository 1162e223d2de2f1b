"""What `--check` prints: what this server would serve, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from brainstacks.engine.facts import DomainStatus
from brainstacks.engine.interface import Engine
from brainstacks.errors import BrainstacksError


async def check(engine: Engine) -> bool:
    """Bring every stack to the device once, print what is served, and close `engine`.

    Returns:
        whether all that is active in the registry is served.
    """
    failed: list[str] = []
    for domain in engine.stacks.names():
        try:
            await engine.stacks.load(domain)
        except BrainstacksError as error:
            failed.append(f"{domain}: {error.message}")
    readiness = engine.status.readiness()
    problems = list(dict.fromkeys((*readiness.problems, *failed)))
    for line in (*_served(engine), *(f"problem   {problem}" for problem in problems)):
        print(line)
    await engine.close()
    return readiness.ready and not problems


def _served(engine: Engine) -> Iterator[str]:
    model, router = engine.status.model, engine.stacks.router()
    yield f"base      {model.name}, {model.quantization}, {model.dtype}, fingerprint {model.fingerprint[:12]}"
    yield f"context   {model.max_context} tokens"
    yield f"computed  by {model.backend} on {model.device}: {model.backend_reason}"
    yield f"registry  generation {engine.stacks.generation}"
    known = "none" if router is None else f"version {router.version}, {router.digest[:12]}"
    yield f"router    {known}"
    for domain in engine.stacks.domains():
        yield f"stack     {_stack(domain)}"


def _stack(one: DomainStatus) -> str:
    routed = f"routed to by the {one.routed_by}" if one.routable else "by name and by fixed weights alone"
    return f"{one.domain} version {one.version}, {one.digest[:12]}, {one.bytes} bytes, {routed}"
