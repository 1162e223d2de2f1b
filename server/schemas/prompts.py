"""Bodies of the routes around generation: routing, tokenising, activating."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from server.schemas.body import LIST, TEXT, Body, Integer, TokenIds, text_or_list
from server.schemas.messages import ChatTemplated, Messages
from server.schemas.sampling import RoutingField


class Prompted(Body):
    """A single prompt, as text or as messages; `model` may be left out."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        if (self.prompt is None) == (self.messages is None):
            yield "prompt", "send either 'prompt' or 'messages'"


class RouteRequest(Prompted):
    """Body of `POST /v1/route`."""

    routing: RoutingField | None = None


class AttributionRequest(Prompted):
    """Body of `POST /v1/attribution`."""

    completion: Annotated[
        Annotated[str, Field(min_length=1), Tag(TEXT)] | Annotated[TokenIds, Field(min_length=1), Tag(LIST)],
        Discriminator(
            text_or_list,
            custom_error_type="completion",
            custom_error_message="it is a text, or a list of token ids",
        ),
    ] = Field(description="text, or the token ids of an answer, that follow the prompt")
    routing: RoutingField | None = None


class TokenizeRequest(Prompted, ChatTemplated):
    """Body of `POST /tokenize`, as vLLM has it."""

    add_special_tokens: bool | None = Field(
        default=None, description="the base's own, such as BOS; left out: true with 'prompt', else false"
    )
    return_token_strs: bool | None = None

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        if self.messages is None:
            for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
                if getattr(self, name) is not None:
                    yield name, "it goes with 'messages'"


class DetokenizeRequest(Body):
    """Body of `POST /detokenize`, as vLLM has it."""

    model: str | None = None
    tokens: TokenIds


class ActivateRequest(Body):
    """Body of `POST /admin/stacks/{domain}/activate` and of `POST /admin/router/activate`."""

    version: Integer = Field(ge=1, le=2**31 - 1)
