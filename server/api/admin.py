"""`/admin`: stacks, the meta-router, the registry, recent requests. The key is checked in `server.auth`."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse

from brainstacks.errors import BrainstacksError, InvalidRequest, NotFound
from brainstacks.stacks.artifact import check_domain_name
from brainstacks.stacks.manifest import Published
from server.api.context import Context, Ctx
from server.composition import routing_object
from server.json_body import JsonRoute
from server.schemas import ActivateRequest
from server.uploads import received_file

audit = logging.getLogger("brainstacks.audit")

routes = APIRouter(prefix="/admin", route_class=JsonRoute, tags=["admin"])

FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _domain(domain: Annotated[str, Path(description="a-z, 0-9, '.', '_', '-'; at most 64")]) -> str:
    check_domain_name(domain)
    return domain


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


Domain = Annotated[str, Depends(_domain)]
ExpectedGeneration = Annotated[int | None, Depends(_generation)]


class DeleteOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    purge: bool = False


class RequestFilter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    domain: str | None = None
    active: bool | None = None


@routes.get("/stacks", summary="Every served domain", response_model=None)
async def list_stacks(ctx: Ctx) -> JSONResponse:
    stacks = [dataclasses.asdict(status) for status in ctx.engine.stacks.domains()]
    return _tagged(ctx, {"stacks": stacks, "generation": ctx.engine.stacks.generation})


@routes.get("/stacks/{domain}", summary="One domain", response_model=None)
async def get_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    return _tagged(ctx, dataclasses.asdict(ctx.engine.stacks.domain(domain)))


@routes.put("/stacks/{domain}", summary="Publish a stack file", response_model=None, openapi_extra=FILE_BODY)
async def put_stack(
    domain: Domain, generation: ExpectedGeneration, request: Request, ctx: Ctx
) -> JSONResponse:
    """201 when it is a new version; 200 when the same bytes were there already. 409 when another writer
    changed the domain since this request arrived."""
    async with _counted(ctx):
        before = await ctx.engine.stacks.stored()  # now: the body may take minutes to arrive
        async with received_file(request, ctx.settings) as file:
            published = await ctx.engine.stacks.publish(
                domain, file, expected_generation=generation, before=before
            )
    return _published(request, published, "domain", status=201 if published.created else 200)


@routes.post("/stacks/{domain}/activate", summary="Roll back or forward", response_model=None)
async def activate_stack(
    body: ActivateRequest, domain: Domain, generation: ExpectedGeneration, request: Request, ctx: Ctx
) -> JSONResponse:
    published = await ctx.engine.stacks.activate(domain, body.version, expected_generation=generation)
    return _published(request, published, "domain")


@routes.delete("/stacks/{domain}", summary="Stop serving a domain", response_model=None)
async def delete_stack(
    domain: Domain,
    generation: ExpectedGeneration,
    options: Annotated[DeleteOptions, Query()],
    request: Request,
    ctx: Ctx,
) -> JSONResponse:
    """Running requests finish first; then memory and, with `purge=true`, disk are freed."""
    published = await ctx.engine.stacks.delete(domain, purge=options.purge, expected_generation=generation)
    return _published(request, published, "domain", purged=options.purge)


@routes.post("/stacks/{domain}/pin", summary="Keep a stack on the device", response_model=None)
async def pin_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    """Answers once it is there. 409 where it does not fit beside the stacks that are pinned already."""
    return _tagged(ctx, dataclasses.asdict(await ctx.engine.stacks.pin(domain)))


@routes.post("/stacks/{domain}/unpin", summary="Let a stack leave the device", response_model=None)
async def unpin_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    return _tagged(ctx, dataclasses.asdict(await ctx.engine.stacks.unpin(domain)))


@routes.post("/stacks/{domain}/evict", summary="Make a stack leave the device", response_model=None)
async def evict_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    """Until a request needs it. 409 while it is in use or pinned."""
    return _tagged(ctx, dataclasses.asdict(await ctx.engine.stacks.evict(domain)))


@routes.post("/stacks/{domain}/load", summary="Bring a stack to the device", response_model=None)
async def load_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    """Answers once it is there."""
    return _tagged(ctx, dataclasses.asdict(await ctx.engine.stacks.load(domain)))


@routes.get("/router", summary="The meta-router in force", response_model=None)
async def get_router(ctx: Ctx) -> JSONResponse:
    status = ctx.engine.stacks.router()
    if status is None:
        raise NotFound("No meta-router is published; send one with PUT /admin/router")
    return _tagged(ctx, dataclasses.asdict(status))


@routes.put("/router", summary="Publish a meta-router", response_model=None, openapi_extra=FILE_BODY)
async def put_router(generation: ExpectedGeneration, request: Request, ctx: Ctx) -> JSONResponse:
    """Its domains must be known: 409 otherwise, and when another router was published since this request
    arrived."""
    async with _counted(ctx):
        before = await ctx.engine.stacks.stored()
        async with received_file(request, ctx.settings) as file:
            published = await ctx.engine.stacks.publish_router(
                file, expected_generation=generation, before=before
            )
    return _published(request, published, "name", status=201 if published.created else 200)


@routes.get("/registry", summary="The manifest", response_model=None)
async def get_registry(ctx: Ctx) -> JSONResponse:
    return _tagged(ctx, {**ctx.engine.stacks.manifest(), "generation": ctx.engine.stacks.generation})


@routes.post("/registry/reload", summary="Reconcile with the store", response_model=None)
async def reload_registry(ctx: Ctx) -> JSONResponse:
    generation = await ctx.engine.stacks.reload()
    return _tagged(ctx, {"generation": generation})


@routes.get("/requests", summary="Recent routing records of all tenants, newest first", response_model=None)
async def recent_requests(chosen: Annotated[RequestFilter, Query()], ctx: Ctx) -> dict[str, Any]:
    records = ctx.engine.status.routing_records(domain=chosen.domain, active=chosen.active)
    return {"requests": [{**routing_object(record), "tenant": record.tenant} for record in records]}


@asynccontextmanager
async def _counted(ctx: Context) -> AsyncIterator[None]:
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


def _published(
    request: Request, published: Published, name: str, *, status: int = 200, **more: Any
) -> JSONResponse:
    """The reply to a change of the registry, which the audit log has now too."""
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
    body = dataclasses.asdict(published)
    body = {name: body.pop("name"), **body, **more}
    return JSONResponse(body, status_code=status, headers={"ETag": f'"{published.generation}"'})


def _tagged(ctx: Context, body: dict[str, Any]) -> JSONResponse:
    return JSONResponse(body, headers={"ETag": f'"{ctx.engine.stacks.generation}"'})
