"""`POST /v1/route` and `GET /v1/routing/{request_id}`: how a prompt is, or was, composed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from server import replies, sse
from server.api.context import Context, Ctx
from server.composition import resolve, routing_headers, routing_object
from server.json_body import JsonRoute
from server.openapi import ASKED, LIMITED, ROUTED, answers
from server.schemas import Prompted, RouteRequest
from server.tools import conversation

routes = APIRouter(route_class=JsonRoute, tags=["inference"])


@routes.post(
    "/v1/route",
    summary="Route a prompt without generating",
    response_model=None,
    responses=answers(replies.Route, *ASKED, headers=(*ROUTED, *LIMITED)),
)
async def route(body: RouteRequest, request: Request, ctx: Ctx) -> JSONResponse:
    """Probabilities, weights after the policy, active domains, stack versions and the time it took."""
    composition = resolve(ctx.engine, body.model, body.routing)
    ticket = ctx.limits.admit(request.state.key)
    ids, param = await prompt_ids(body, request.state.tenant, ctx)
    ctx.room(ids, param)
    work = ctx.engine.route(request.state.request_id, ids, composition, request.state.tenant)
    routing = await sse.until_disconnect(request.receive, work)
    ctx.metrics.observe_routing(routing)
    return JSONResponse(
        {**routing_object(routing), "prompt_tokens": len(ids)},
        headers={**routing_headers(routing), **ctx.ignored_headers(body), **ticket.headers},
    )


@routes.get(
    "/v1/routing/{request_id}",
    summary="A recent request's routing",
    response_model=None,
    responses=answers(replies.Routing, 404),
)
async def routing_record(request_id: str, request: Request, ctx: Ctx) -> dict[str, Any]:
    """Of the caller's own tenant alone."""
    return routing_object(ctx.engine.status.routing_record(request_id, request.state.tenant))


async def prompt_ids(body: Prompted, tenant: str, ctx: Context) -> tuple[list[int], str]:
    """Token ids of the one prompt, as generation would see it, and the field that it came in."""
    if body.messages is not None:
        return await ctx.encoder.encode_chat(conversation(ctx.tool_format, body.messages), tenant), "messages"
    return await ctx.encoder.encode(body.prompt or "", tenant), "prompt"
