"""`/admin`: stacks, the registry, recent requests. The key is checked in `server.auth`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brainstacks.engine.facts import DomainStatus
from brainstacks.stacks.artifact import check_domain_name
from brainstacks.stacks.router_artifact import NOT_ROUTED
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
from server.api.context import Context, Ctx
from server.composition import routing_object
from server.downloads import StoredFile
from server.fleet.states import ReplicaState
from server.json_body import JsonRoute
from server.openapi import GENERATION, answers, file_answer
from server.schemas import ActivateRequest
from server.uploads import received_file

routes = APIRouter(prefix="/admin", route_class=JsonRoute, tags=["admin"])

CHANGED = answers(replies.PublishedStack, 404, 409, 412, 503, 507, headers=GENERATION)
MOVED = answers(replies.Stack, 404, 409, 503, headers=GENERATION)


def _domain(domain: Annotated[str, Path(description="a-z, 0-9, '.', '_', '-'; at most 64")]) -> str:
    check_domain_name(domain)
    return domain


Domain = Annotated[str, Depends(_domain)]


class DeleteOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    purge: bool = False


class RequestFilter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    domain: str | None = None
    active: bool | None = None


@routes.get(
    "/stacks",
    summary="Every served domain",
    response_model=None,
    responses=answers(replies.Stacks, headers=GENERATION),
)
async def list_stacks(ctx: Ctx) -> JSONResponse:
    """What this replica serves, and, in a fleet, what the others last said."""
    replicas = ctx.fleet.states()
    stacks = [_told(status, replicas) for status in ctx.engine.stacks.domains()]
    told = [_place(replica) for replica in replicas]
    return tagged(ctx, {"stacks": stacks, "generation": ctx.engine.stacks.generation, "replicas": told})


@routes.get(
    "/stacks/{domain}",
    summary="One domain",
    response_model=None,
    responses=answers(replies.Stack, 404, headers=GENERATION),
)
async def get_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    return tagged(ctx, _told(ctx.engine.stacks.domain(domain), ctx.fleet.states()))


@routes.put(
    "/stacks/{domain}",
    summary="Publish a stack file",
    response_model=None,
    openapi_extra=FILE_BODY,
    responses={**CHANGED, **answers(replies.PublishedStack, status=201, headers=GENERATION)},
)
async def put_stack(
    domain: Domain, generation: ExpectedGeneration, request: Request, ctx: Ctx
) -> JSONResponse:
    """201 when it is a new version; 200 when the same bytes were there already. 409 when another writer
    changed the domain since this request arrived."""
    async with counted(ctx):
        before = await ctx.engine.stacks.stored()  # now: the body may take minutes to arrive
        async with received_file(request, ctx.settings) as file:
            published = await ctx.engine.stacks.publish(
                domain, file, expected_generation=generation, before=before
            )
    status, told = 201 if published.created else 200, _routed(ctx, domain)
    return await published_reply(ctx, request, published, "domain", status=status, **told)


@routes.post(
    "/stacks/{domain}/activate",
    summary="Roll back or forward",
    response_model=None,
    responses=CHANGED,
)
async def activate_stack(
    body: ActivateRequest, domain: Domain, generation: ExpectedGeneration, request: Request, ctx: Ctx
) -> JSONResponse:
    published = await ctx.engine.stacks.activate(domain, body.version, expected_generation=generation)
    return await published_reply(ctx, request, published, "domain", **_routed(ctx, domain))


def _told(status: DomainStatus, replicas: Sequence[ReplicaState]) -> dict[str, Any]:
    """`status`, and whether every replica serves that version."""
    places = [replica.places.get(status.domain) for replica in replicas]
    ready = all(place is not None and place.version == status.version for place in places)
    return {**dataclasses.asdict(status), "ready": ready}


def _place(replica: ReplicaState) -> dict[str, Any]:
    residency = {domain: place.tier for domain, place in replica.places.items()}
    return {"replica": replica.name, "generation": replica.generation, "residency": residency}


def _routed(ctx: Context, domain: str) -> dict[str, Any]:
    """What a reply tells of whether routed requests use what is served now."""
    served = (one.routed_by for one in ctx.engine.stacks.domains() if one.domain == domain)
    by = next(served, None)
    note = {} if by is not None else {"note": f"{domain}: {NOT_ROUTED}"}
    return {"routable": by is not None, "routed_by": by, **note}


@routes.get(
    "/stacks/{domain}/versions/{version}/file",
    summary="A stack file",
    status_code=200,
    response_class=StoredFile,
    response_model=None,
    responses=file_answer(404),
)
async def get_stack_file(domain: Domain, version: VersionNumber, ctx: Ctx) -> Response:
    """The bytes that were published; `Repr-Digest` has their sha256."""
    found, file = await ctx.engine.stacks.file(domain, version)
    return StoredFile(file, found, domain, tag(ctx))


@routes.delete(
    "/stacks/{domain}",
    summary="Stop serving a domain",
    response_model=None,
    responses=CHANGED,
)
async def delete_stack(
    domain: Domain,
    generation: ExpectedGeneration,
    options: Annotated[DeleteOptions, Query()],
    request: Request,
    ctx: Ctx,
) -> JSONResponse:
    """Running requests finish first; then memory and, with `purge=true`, disk are freed."""
    published = await ctx.engine.stacks.delete(domain, purge=options.purge, expected_generation=generation)
    return await published_reply(ctx, request, published, "domain", purged=options.purge)


@routes.post(
    "/stacks/{domain}/pin", summary="Keep a stack on the device", response_model=None, responses=MOVED
)
async def pin_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    """Answers once it is there. In a fleet it is this replica's alone, as are unpin, evict and load: name one
    with `x-brainstacks-replica`. 409 where it does not fit beside the stacks that are pinned already."""
    return tagged(ctx, _told(await ctx.engine.stacks.pin(domain), ctx.fleet.states()))


@routes.post(
    "/stacks/{domain}/unpin", summary="Let a stack leave the device", response_model=None, responses=MOVED
)
async def unpin_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    return tagged(ctx, _told(await ctx.engine.stacks.unpin(domain), ctx.fleet.states()))


@routes.post(
    "/stacks/{domain}/evict", summary="Make a stack leave the device", response_model=None, responses=MOVED
)
async def evict_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    """Until a request needs it. 409 while it is in use or pinned."""
    return tagged(ctx, _told(await ctx.engine.stacks.evict(domain), ctx.fleet.states()))


@routes.post(
    "/stacks/{domain}/load", summary="Bring a stack to the device", response_model=None, responses=MOVED
)
async def load_stack(domain: Domain, ctx: Ctx) -> JSONResponse:
    """Answers once it is there."""
    return tagged(ctx, _told(await ctx.engine.stacks.load(domain), ctx.fleet.states()))


@routes.get(
    "/registry",
    summary="The manifest",
    response_model=None,
    responses=answers(replies.Registry, headers=GENERATION),
)
async def get_registry(ctx: Ctx) -> JSONResponse:
    return tagged(ctx, {**ctx.engine.stacks.manifest(), "generation": ctx.engine.stacks.generation})


@routes.post(
    "/registry/reload",
    summary="Reconcile with the store",
    response_model=None,
    responses=answers(replies.Generation, 503, headers=GENERATION),
)
async def reload_registry(ctx: Ctx) -> JSONResponse:
    generation = await ctx.engine.stacks.reload()
    await ctx.fleet.announce()
    return tagged(ctx, {"generation": generation})


@routes.get(
    "/requests",
    summary="Recent routing records of all tenants, newest first",
    response_model=None,
    responses=answers(replies.RoutingRecords),
)
async def recent_requests(chosen: Annotated[RequestFilter, Query()], ctx: Ctx) -> dict[str, Any]:
    records = ctx.engine.status.routing_records(domain=chosen.domain, active=chosen.active)
    return {"requests": [{**routing_object(record), "tenant": record.tenant} for record in records]}
