"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from server import replies
from server.api.context import Ctx
from server.composition import resolve
from server.json_body import JsonRoute
from server.openapi import LIMITED, answers
from server.schemas import DetokenizeRequest, TokenizeRequest
from server.tools import conversation

routes = APIRouter(route_class=JsonRoute, tags=["inference"])


@routes.post(
    "/tokenize",
    summary="Text or messages to token ids",
    response_model=None,
    responses=answers(replies.Tokens, 404, 429, headers=("x-brainstacks-ignored", *LIMITED)),
)
async def tokenize(body: TokenizeRequest, request: Request, ctx: Ctx) -> JSONResponse:
    """Text of special tokens never becomes a special token.

    Text may have as many bytes as the context could hold in the longest tokens of the vocabulary;
    `token_strs` are given of as many tokens as the context holds.
    """
    resolve(ctx.engine, body.model, None)
    ticket = ctx.limits.admit(request.state.key)
    tenant, encoder = request.state.tenant, ctx.encoder
    if body.messages is not None:
        ids = await encoder.encode_chat(
            conversation(ctx.tool_format, body.messages), tenant, **body.template_options()
        )
    else:
        special = body.add_special_tokens is not False
        ids = await encoder.encode(body.prompt or "", tenant, add_special_tokens=special)
    texts = await encoder.token_texts(ids, tenant, "return_token_strs") if body.return_token_strs else None
    reply = {
        "count": len(ids),
        "max_model_len": ctx.engine.status.model.max_context,
        "tokens": ids,
        "token_strs": texts,
    }
    # Not the dict, of which the framework would look at every id.
    return JSONResponse(reply, headers={**ctx.ignored_headers(body), **ticket.headers})


@routes.post(
    "/detokenize",
    summary="Token ids to text",
    response_model=None,
    responses=answers(replies.Text, 404, 429, headers=LIMITED),
)
async def detokenize(body: DetokenizeRequest, request: Request, ctx: Ctx) -> JSONResponse:
    """As many tokens as the context holds."""
    resolve(ctx.engine, body.model, None)
    ticket = ctx.limits.admit(request.state.key)
    ctx.check_ids(body.tokens, "tokens")
    text = await ctx.encoder.decode(body.tokens, request.state.tenant, "tokens")
    return JSONResponse({"prompt": text}, headers=ticket.headers)


@routes.get(
    "/tokenizer_info",
    summary="The base's tokenizer and chat template",
    response_model=None,
    responses=answers(replies.TokenizerInfo),
)
async def tokenizer_info(ctx: Ctx) -> dict[str, Any]:
    """`tool_format` names the format of the calls of functions; docs/tools.md has them."""
    return {**ctx.engine.tokenizer.info(), "tool_format": ctx.tool_format.name}
