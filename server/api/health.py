"""`/health`, `/ping`, `/ready`, `/metrics`, `/version`: for whoever runs the server."""

from __future__ import annotations

import dataclasses
import math
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from brainstacks.engine.interface import Status
from server import replies
from server.api.context import Ctx
from server.json_body import JsonRoute
from server.openapi import answers

STUCK_AFTER = 30.0
"""Seconds that the engine's thread may take over one step or command; longer than the longest sane one."""

HEALTH = {**answers(replies.Health), **answers(replies.Health, status=503)}

routes = APIRouter(route_class=JsonRoute, tags=["operations"])


@routes.get(
    "/health", summary="The process lives and its engine answers", response_model=None, responses=HEALTH
)
async def health(ctx: Ctx) -> JSONResponse:
    """Waits for nothing. It needs no key, and so tells nothing of prompts and what was reused of them."""
    status = ctx.engine.status
    problem = ailing(status)
    load, model = status.gauges(), status.model
    body = {
        "status": "ok" if problem is None else "failing",
        "backend": model.backend,
        "reason": model.backend_reason,
        "device": {
            "name": model.device,
            "gpu": model.gpu,
            "state": problem or "ok",
            "stack_bytes": model.device_stack_bytes,
            "kv_cache_tokens": model.kv_cache_tokens,
        },
        "running": load.running,
        "waiting": load.waiting,
    }
    return JSONResponse(body, status_code=200 if problem is None else 503)


@routes.get("/ping", summary="The same as /health", response_model=None, responses=HEALTH)
@routes.post("/ping", summary="The same as /health", response_model=None, responses=HEALTH)
async def ping(ctx: Ctx) -> JSONResponse:
    return await health(ctx)


@routes.get(
    "/ready",
    summary="Requests can be served",
    response_model=None,
    responses={**answers(replies.Ready), **answers(replies.Ready, status=503)},
)
async def ready(ctx: Ctx) -> JSONResponse:
    """503 while the base, registry or router is not usable, and while draining; `problems` says why, or what
    is degraded although it is ready. `unrouted`: domains that routed requests leave out, which is none."""
    readiness = ctx.engine.status.readiness()
    problems = [*readiness.problems, *filter(None, [ctx.fleet.problem()])]
    body = {"ready": readiness.ready, "problems": problems, "unrouted": readiness.unrouted}
    if readiness.ready:
        return JSONResponse(body)
    return JSONResponse(body, status_code=503, headers={"Retry-After": "1"})


@routes.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, response_model=None)
async def metrics(ctx: Ctx) -> Response:
    return Response(await ctx.fleet.metrics(ctx.metrics.render()), media_type=CONTENT_TYPE_LATEST)


@routes.get(
    "/version",
    summary="What is served, by what",
    response_model=None,
    responses=answers(replies.ServerVersion),
)
async def get_version(ctx: Ctx) -> JSONResponse:
    model = dataclasses.asdict(ctx.engine.status.model)
    return JSONResponse(
        {
            "version": server_version(),
            "generation": ctx.engine.stacks.generation,
            "model": model,
            **_limits(ctx),
        }
    )


def ailing(status: Status) -> str | None:
    """Why the engine computes nothing, if so."""
    problem, silence = status.problem(), status.silence()
    if problem is None and silence > STUCK_AFTER:
        return (
            f"the engine has been at one step for {silence:.0f} s" if silence < math.inf else "it has ended"
        )
    return problem


def server_version() -> str:
    try:
        return version("brainstacks")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+checkout"


def _limits(ctx: Ctx) -> dict[str, int]:
    return {"max_body_bytes": ctx.settings.max_body_bytes, "max_upload_bytes": ctx.settings.max_upload_bytes}
