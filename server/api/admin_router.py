"""`/admin/router`: the meta-router. The key is checked in `server.auth`."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brainstacks.errors import NotFound
from server import replies
from server.api.changes import (
    FILE_BODY,
    ExpectedGeneration,
    VersionNumber,
    counted,
    published_reply,
    tag,
    tagged,
)
from server.api.context import Ctx
from server.downloads import StoredFile
from server.json_body import JsonRoute
from server.openapi import GENERATION, answers, file_answer
from server.schemas import ActivateRequest
from server.uploads import received_file

CHANGED_ROUTER = answers(replies.PublishedRouter, 404, 409, 412, 503, 507, headers=GENERATION)

routes = APIRouter(prefix="/admin", route_class=JsonRoute, tags=["admin"])


@routes.get(
    "/router",
    summary="The meta-router in force",
    response_model=None,
    responses=answers(replies.Router, 404, headers=GENERATION),
)
async def get_router(ctx: Ctx) -> JSONResponse:
    status = ctx.engine.stacks.router()
    if status is None:
        raise NotFound("No meta-router is published; send one with PUT /admin/router")
    return tagged(ctx, dataclasses.asdict(status))


@routes.put(
    "/router",
    summary="Publish a meta-router",
    response_model=None,
    openapi_extra=FILE_BODY,
    responses={
        **answers(replies.PublishedRouter, 409, 412, 503, 507, headers=GENERATION),
        **answers(replies.PublishedRouter, status=201, headers=GENERATION),
    },
)
async def put_router(generation: ExpectedGeneration, request: Request, ctx: Ctx) -> JSONResponse:
    """Its domains must be known: 409 otherwise, and when another router was published since this request
    arrived."""
    async with counted(ctx):
        before = await ctx.engine.stacks.stored()
        async with received_file(request, ctx.settings) as file:
            published = await ctx.engine.stacks.publish_router(
                file, expected_generation=generation, before=before
            )
    return await published_reply(ctx, request, published, "name", status=201 if published.created else 200)


@routes.post(
    "/router/activate",
    summary="Roll the meta-router back or forward",
    response_model=None,
    responses=CHANGED_ROUTER,
)
async def activate_router(
    body: ActivateRequest, generation: ExpectedGeneration, request: Request, ctx: Ctx
) -> JSONResponse:
    """409 where it routes to a domain that was deleted."""
    published = await ctx.engine.stacks.activate_router(body.version, expected_generation=generation)
    return await published_reply(ctx, request, published, "name")


@routes.get(
    "/router/versions/{version}/file",
    summary="A router file",
    status_code=200,
    response_class=StoredFile,
    response_model=None,
    responses=file_answer(404),
)
async def get_router_file(version: VersionNumber, ctx: Ctx) -> Response:
    """The bytes that were published; `Repr-Digest` has their sha256."""
    found, file = await ctx.engine.stacks.router_file(version)
    return StoredFile(file, found, "router", tag(ctx))
