"""`POST /v1/attribution`: which stack moved which token of an answer."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from brainstacks.engine.attribution import ALWAYS, attribution, scores, variants
from server import replies, sse
from server.api.context import Ctx
from server.api.routing import prompt_ids
from server.composition import resolve, routing_headers, routing_object
from server.json_body import JsonRoute
from server.openapi import ASKED, LIMITED, ROUTED, answers
from server.schemas import AttributionRequest

routes = APIRouter(route_class=JsonRoute, tags=["inference"])


@routes.post(
    "/v1/attribution",
    summary="Which stack moved which token",
    response_model=None,
    responses=answers(replies.Attribution, *ASKED, headers=(*ROUTED, *LIMITED)),
)
async def attribute(body: AttributionRequest, request: Request, ctx: Ctx) -> JSONResponse:
    """Per token of the completion its log-probability (nats) under the base, under the composition, and under
    the composition without each of its stacks."""
    composition, tenant = resolve(ctx.engine, body.model, body.routing), request.state.tenant
    ids, param = await prompt_ids(body, tenant, ctx)
    completion = body.completion
    if isinstance(completion, str):
        completion = await ctx.encoder.encode(completion, tenant, add_special_tokens=False)
    ctx.check_ids(completion, "completion")
    if len(completion) > ctx.room(ids, param):
        raise ctx.too_long(len(ids), len(completion), "completion")
    name, each = request.state.request_id, len(ids) + len(completion)
    used = 0
    ticket = ctx.limits.admit(request.state.key, ALWAYS, ALWAYS * each)
    try:
        route = ctx.engine.route(name, ids, composition, tenant)
        routing = await sse.until_disconnect(request.receive, route)
        weights = {domain: routing.weights[domain] for domain in routing.active}
        asked = variants(name, ids, completion, weights, tenant)
        ctx.limits.extend(ticket, len(asked) - ALWAYS, (len(asked) - ALWAYS) * each)
        events = await sse.until_disconnect(request.receive, scores(ctx.engine, asked))
        used = len(asked) * each
    finally:
        ticket.settle(used)
    tokens = attribution(routing.stacks, len(completion), events)
    sums: dict[str, Any] = {
        "base": sum(token.base for token in tokens),
        "composed": sum(token.composed for token in tokens),
        "without": {d: sum(token.without[d] for token in tokens) for d in routing.active},
    }
    return JSONResponse(
        {
            "object": "attribution",
            "model": body.model or ctx.engine.status.model.name,
            "prompt_tokens": len(ids),
            "tokens": [dataclasses.asdict(token) for token in tokens],
            "sums": sums,
            "routing": routing_object(routing),
        },
        headers={**routing_headers(routing), **ctx.ignored_headers(body), **ticket.headers},
    )
