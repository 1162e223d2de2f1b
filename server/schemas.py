"""What a client may send: names, types and ranges, all strict.

Unknown fields are refused by name, "5" is not an integer, true is not 1, NaN is nothing. A null field
means its default, as with OpenAI.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from brainstacks.engine.request import MAX_TOP_LOGPROBS, MAX_WEIGHT, Grammar, SamplingParams
from server.structured import ResponseFormat, StructuredOutputs

MAX_SEQUENCES = 256
"""Most completions (prompts x best_of) that one HTTP request may ask for."""
MAX_N = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
MAX_SEED = 2**63 - 1 - MAX_N
"""Completion i uses seed + i, which has to stay within 64 bits."""

Text = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Prompt = str | list[str] | list[TokenId] | list[list[TokenId]]


class Body(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Body of every refused or failed request."""

    error: ErrorDetail


class RoutingField(Body):
    """The field `routing`: the composition, chosen by hand.

    `weights` goes with mode `fixed` only; a domain left out has weight 0. `top` keeps the heaviest domains.
    `sticky` names a conversation, whose first prompt is routed; those that follow keep that route.
    """

    mode: Literal["routed", "base", "ungated", "fixed"] = "routed"
    weights: dict[str, Weight] | None = Field(default=None, max_length=1024)
    top: int | None = Field(default=None, ge=1, le=1024)
    sticky: str | None = Field(default=None, min_length=1, max_length=128)

    @model_validator(mode="after")
    def _consistent(self) -> RoutingField:
        if (self.weights is not None) != (self.mode == "fixed"):
            raise ValueError("'weights' and mode 'fixed' go together; send both or neither")
        if self.top is not None and self.mode == "base":
            raise ValueError("'top' has no meaning with mode 'base'; leave it out")
        if self.sticky is not None and self.mode != "routed":
            raise ValueError(f"'sticky' keeps the router's choice; it has no meaning with mode {self.mode!r}")
        return self


class StreamOptions(Body):
    include_usage: bool | None = None


class Sampling(Body):
    """Fields that completions and chat completions share."""

    model: str = Field(description="a name of /v1/models")
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1, description="0 and -1 keep all")
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=MAX_BIASES
    )
    seed: int | None = Field(default=None, ge=-(2**63), le=MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=64)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(default=None, description="the caller's own label; changes nothing")
    routing: RoutingField | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for key in biases or {}:
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise ValueError(f"its key {key[:20]!r} is not a token id; keys are decimal token ids")
        return biases

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        return self

    @model_validator(mode="after")
    def _one_form(self) -> Sampling:
        if self.structured_outputs and self.response_format and self.response_format.type != "text":
            raise ValueError("'response_format' and 'structured_outputs' are one thing; send one of them")
        return self

    def grammar(self) -> Grammar | None:
        """What the text has to be."""
        asked = self.structured_outputs or self.response_format
        return None if asked is None else asked.grammar()

    def sampling(
        self, max_tokens: int, *, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        """These fields as the engine takes them."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=max(self.top_k or 0, 0),
            min_p=_or(self.min_p, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias={int(key): bias for key, bias in (self.logit_bias or {}).items()},
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=self.grammar(),
        )


class CompletionRequest(Sampling):
    """Body of `POST /v1/completions`."""

    prompt: Prompt = Field(description="text, list of texts, token ids, or list of lists of token ids")
    max_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1, description="16 when left out")
    best_of: int | None = Field(default=None, ge=1, le=MAX_N)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_kind(cls, prompt: object) -> object:
        """One message for the whole union, instead of one per member."""
        rule = (
            "it is a text, a list of texts, a list of token ids, or a list of lists of token ids, not empty"
        )
        items = prompt if isinstance(prompt, list) else [prompt]
        kinds = {type(item) for item in items}
        if (
            len(kinds) != 1
            or not kinds <= {str, int, list}
            or (not isinstance(prompt, list) and kinds != {str})
        ):
            raise ValueError(rule)
        for ids in items:
            if isinstance(ids, list) and (not ids or any(type(token_id) is not int for token_id in ids)):
                raise ValueError(rule)
        if kinds != {int} and len(items) > MAX_SEQUENCES:
            raise ValueError(f"it has {len(items)} prompts; at most {MAX_SEQUENCES} go into one request")
        return prompt

    @model_validator(mode="after")
    def _best_of_fits(self) -> CompletionRequest:
        n, best_of = self.n or 1, self.best_of
        if best_of is not None and best_of < n:
            raise ValueError(f"'best_of' is {best_of}, less than 'n' ({n}); it is at least 'n'")
        if best_of is not None and best_of > n and self.stream:
            raise ValueError("'best_of' beyond 'n' cannot be streamed; leave out 'stream' or 'best_of'")
        return self


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation; text only."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As a chat template takes it. `developer` is OpenAI's newer name of `system`."""
        content = (
            self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


Messages = Annotated[list[Message], Field(min_length=1, max_length=4096)]


class ChatRequest(Sampling):
    """Body of `POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="the rest of the context when left out"
    )
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("'max_tokens' and 'max_completion_tokens' are one thing; send one of them")
        return self


class Prompted(Body):
    """A single prompt, as text or as messages; `model` may be left out."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Prompted:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either 'prompt' or 'messages'")
        return self


class RouteRequest(Prompted):
    """Body of `POST /v1/route`."""

    routing: RoutingField | None = None


class TokenizeRequest(Prompted):
    """Body of `POST /tokenize`, as vLLM has it."""

    add_special_tokens: bool | None = Field(default=None, description="with 'prompt'; true when left out")
    add_generation_prompt: bool | None = Field(
        default=None, description="with 'messages'; true when left out"
    )
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _options_fit(self) -> TokenizeRequest:
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("'add_special_tokens' goes with 'prompt'; a chat template brings its own")
        if self.prompt is not None and self.add_generation_prompt is not None:
            raise ValueError("'add_generation_prompt' goes with 'messages'")
        return self


class DetokenizeRequest(Body):
    """Body of `POST /detokenize`, as vLLM has it."""

    model: str | None = None
    tokens: list[TokenId]


class ActivateRequest(Body):
    """Body of `POST /admin/stacks/{domain}/activate`."""

    version: int = Field(ge=1, le=2**31 - 1)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
