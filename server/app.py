"""The HTTP application, assembled from its parts."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from brainstacks.engine.interface import Engine
from server import errors
from server.api import (
    admin,
    admin_router,
    attribution,
    chat,
    completions,
    health,
    models,
    responses,
    routing,
    tokenize,
)
from server.api.context import Context, known_query
from server.auth import Auth
from server.body_limit import BodyLimit
from server.cors import Cors
from server.encoder import Encoder
from server.fleet.addressed import Addressed
from server.fleet.states import Alone, Fleet
from server.json_body import JsonRoute
from server.keys import Keys
from server.metrics import Metrics
from server.openapi import Api
from server.rate_limit import RateLimits
from server.request_context import RequestContext
from server.settings import Settings
from server.tool_format import format_of
from server.tracing import Tracing

INSPECTOR = Path(__file__).parent / "inspector"


def create_app(
    engine: Engine, settings: Settings, tracing: Tracing | None = None, fleet: Fleet | None = None
) -> FastAPI:
    """One server over `engine`, which the caller opens and closes.

    A request passes, in this order: its id and last-resort reply, the replica's name in a fleet, other
    origins if there are any, the keys, the limits, the routes.

    Args:
        tracing: None traces nothing.
        fleet: that it is a replica of; None for a server of its own.
    """
    keys = Keys(settings.api_key, settings.api_key_file)
    encoder, limits = Encoder(engine), RateLimits(settings)
    context = Context(
        engine,
        settings,
        Metrics(engine),
        keys,
        encoder,
        limits,
        format_of(engine.tokenizer),
        fleet or Alone(engine),
    )
    app = Api(
        settings,
        keys,
        title="Brainstacks",
        summary="Inference over composed MoE-LoRA stacks",
        version=health.server_version(),
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would answer before the path has one meaning
        middleware=[
            Middleware(RequestContext, metrics=context.metrics, keys=keys, tracing=tracing),
            *([Middleware(Addressed, name=fleet.name)] if fleet else []),
            *([Middleware(Cors, settings=settings)] if settings.cors_origin else []),
            Middleware(Auth, settings=settings, keys=keys),
            Middleware(BodyLimit, settings=settings),
        ],
    )
    app.state.context = context
    errors.install(app)
    for part in (
        completions,
        chat,
        responses,
        routing,
        attribution,
        models,
        tokenize,
        admin,
        admin_router,
        health,
    ):
        app.include_router(part.routes, dependencies=[Depends(known_query)])
    app.include_router(_pages())
    app.mount("/inspector", StaticFiles(directory=INSPECTOR), name="inspector")
    return app


def _pages() -> APIRouter:
    pages = APIRouter(route_class=JsonRoute, include_in_schema=False)

    @pages.get("/", response_model=None)
    async def inspector() -> FileResponse:
        return FileResponse(INSPECTOR / "index.html")

    @pages.get("/docs", response_model=None)
    async def docs() -> FileResponse:
        return FileResponse(INSPECTOR / "docs.html")

    return pages
