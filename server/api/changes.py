"""What routes that change the registry have in common: whose turn it is, files that come, what is told."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, Header, Path
from starlette.requests import Request
from starlette.responses import JSONResponse

from brainstacks.errors import BrainstacksError, InvalidRequest
from brainstacks.stacks.manifest import Published
from server.api.context import Context

audit = logging.getLogger("brainstacks.audit")

FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _generation(
    if_match: Annotated[str | None, Header(description="generation that must be current")] = None,
) -> int | None:
    """The generation in If-Match, quoted as an ETag is, or bare; None when any will do."""
    if if_match is None or if_match.strip() == "*":
        return None
    match = re.fullmatch(r'\s*(?:"(\d{1,18})"|(\d{1,18}))\s*', if_match, re.ASCII)
    if match is None:
        raise InvalidRequest(
            f"If-Match is {if_match[:40]!r}; send the registry's generation, as in the ETag", param="If-Match"
        )
    return int(match[1] or match[2])


VersionNumber = Annotated[int, Path(ge=1, le=2**31 - 1)]
ExpectedGeneration = Annotated[int | None, Depends(_generation)]


@asynccontextmanager
async def counted(ctx: Context) -> AsyncIterator[None]:
    """Counts an upload by its outcome: `accepted`, or the error's code."""
    try:
        yield
    except BrainstacksError as error:
        ctx.metrics.uploads.labels(error.code or "refused").inc()
        raise
    except Exception as error:
        ctx.metrics.uploads.labels(getattr(error, "code", None) or "broken_off").inc()
        raise
    ctx.metrics.uploads.labels("accepted").inc()


async def published_reply(
    ctx: Context, request: Request, published: Published, name: str, *, status: int = 200, **more: Any
) -> JSONResponse:
    """The reply to a change of the registry, which is durable, and which the audit log has now too. It says
    which replicas serve it already; the others were told of it."""
    audit.info(
        "%s %s: %s version %d, digest %s, generation %d; from %s, request %s",
        request.method,
        request.url.path,
        published.name,
        published.version,
        published.digest,
        published.generation,
        request.client.host if request.client else "unknown",
        request.state.request_id,
        extra={"request_id": request.state.request_id},
    )
    await ctx.fleet.announce()
    states = ctx.fleet.states()
    serving = [state.name for state in states if state.generation >= published.generation]
    body = dataclasses.asdict(published)
    body = {name: body.pop("name"), **body, **more}
    body |= {"ready": len(serving) == len(states), "serving": serving}
    return JSONResponse(body, status_code=status, headers={"ETag": f'"{published.generation}"'})


def tagged(ctx: Context, body: dict[str, Any]) -> JSONResponse:
    return JSONResponse(body, headers=tag(ctx))


def tag(ctx: Context) -> dict[str, str]:
    return {"ETag": f'"{ctx.engine.stacks.generation}"'}
