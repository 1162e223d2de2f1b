"""`GET /v1/models`: every name that `model` may take."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from brainstacks.errors import ModelNotFound
from server import replies
from server.api.context import Context, Ctx
from server.composition import models
from server.json_body import JsonRoute
from server.openapi import answers

routes = APIRouter(route_class=JsonRoute, tags=["inference"])


@routes.get(
    "/v1/models", summary="Every servable name", response_model=None, responses=answers(replies.Models)
)
async def list_models(ctx: Ctx) -> dict[str, Any]:
    cards = [_card(ctx, name, domains) for name, (_, domains) in models(ctx.engine).items()]
    return {"object": "list", "data": cards}


@routes.get(
    "/v1/models/{model_id:path}",
    summary="One servable name",
    response_model=None,
    responses=answers(replies.Model, 404),
)
async def get_model(model_id: str, ctx: Ctx) -> dict[str, Any]:
    served = models(ctx.engine)
    if model_id not in served:
        raise ModelNotFound(
            f"The model {model_id[:200]!r} does not exist; there are {', '.join(served)}", param="model"
        )
    return _card(ctx, model_id, served[model_id][1])


def _card(ctx: Context, name: str, domains: list[str]) -> dict[str, Any]:
    model = ctx.engine.status.model
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "brainstacks",
        "root": model.name,
        "parent": None if name == model.name else model.name,
        "max_model_len": model.max_context,
        "domains": domains,
        "generation": ctx.engine.stacks.generation,
    }
