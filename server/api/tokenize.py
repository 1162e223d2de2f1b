"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from server.api.context import Ctx
from server.composition import resolve
from server.json_body import JsonRoute
from server.schemas import DetokenizeRequest, TokenizeRequest

routes = APIRouter(route_class=JsonRoute, tags=["inference"])


@routes.post("/tokenize", summary="Text or messages to token ids", response_model=None)
async def tokenize(body: TokenizeRequest, ctx: Ctx) -> JSONResponse:
    """Text of special tokens never becomes a special token."""
    resolve(ctx.engine, body.model, None)
    if body.messages is not None:
        ids = await ctx.encode_chat(body.messages, **body.template_options())
    else:
        ids = await ctx.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    texts = [ctx.engine.tokenizer.token_text(i) for i in ids] if body.return_token_strs else None
    reply = {
        "count": len(ids),
        "max_model_len": ctx.engine.status.model.max_context,
        "tokens": ids,
        "token_strs": texts,
    }
    return JSONResponse(reply, headers=ctx.ignored_headers(body))


@routes.post("/detokenize", summary="Token ids to text", response_model=None)
async def detokenize(body: DetokenizeRequest, ctx: Ctx) -> dict[str, str]:
    resolve(ctx.engine, body.model, None)
    ctx.check_ids(body.tokens, "tokens")
    return {"prompt": ctx.engine.tokenizer.decode(body.tokens)}


@routes.get("/tokenizer_info", summary="The base's tokenizer and chat template", response_model=None)
async def tokenizer_info(ctx: Ctx) -> dict[str, Any]:
    return ctx.engine.tokenizer.info()
