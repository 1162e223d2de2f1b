"""Fields of requests that generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from brainstacks.engine.request import MAX_TOP_LOGPROBS, MAX_WEIGHT, Grammar, SamplingParams
from server.schemas.body import LIST, TEXT, WITHOUT_EFFECT, Body, Integer, TokenIds, text_or_list
from server.schemas.structured import ResponseFormat, StructuredOutputs

MAX_SEQUENCES = 256
"""Most completions (prompts x best_of) that one HTTP request may ask for."""
MAX_N = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
MAX_ALLOWED = 2**18
MAX_BAD_WORDS = 64
MAX_SEED = 2**63 - 1 - MAX_N
"""Completion i uses seed + i, which has to stay within 64 bits."""

Label = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[
    Annotated[Stop, Tag(TEXT)] | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag(LIST)],
    Discriminator(
        text_or_list,
        custom_error_type="stop",
        custom_error_message=f"it is a text, or a list of at most {MAX_STOPS} texts",
    ),
]


Version = Annotated[
    Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Tag(TEXT)]
    | Annotated[Integer, Field(ge=1, le=2**31 - 1), Tag(LIST)],
    Discriminator(
        lambda value: TEXT if isinstance(value, str) else LIST,
        custom_error_type="version",
        custom_error_message="it is a version number, or a digest of 64 hexadecimal digits",
    ),
]


class RoutingField(Body):
    """The field `routing`: the composition, chosen by hand.

    `weights` goes with mode `fixed` only; a domain left out has weight 0. `top` keeps the heaviest domains.
    `sticky` names a conversation, whose first prompt is routed; those that follow keep that route.
    `stacks` names exact versions: the answer is by these, or 404 or 409.
    """

    mode: Literal["routed", "base", "ungated", "fixed"] = "routed"
    weights: dict[str, Weight] | None = Field(default=None, max_length=1024)
    top: Integer | None = Field(default=None, ge=1, le=1024)
    sticky: str | None = Field(default=None, min_length=1, max_length=128)
    stacks: dict[str, Version] | None = Field(
        default=None, max_length=1024, description="the version, or digest, that a domain has to have"
    )

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        if (self.weights is not None) != (self.mode == "fixed"):
            yield "weights", "they go with mode 'fixed', which needs them; send both or neither"
        if self.top is not None and self.mode == "base":
            yield "top", "it has no meaning with mode 'base'; leave it out"
        if self.stacks is not None and self.mode == "base":
            yield "stacks", "it has no meaning with mode 'base'; leave it out"
        if self.sticky is not None and self.mode != "routed":
            yield "sticky", f"it keeps the router's choice; it has no meaning with mode {self.mode!r}"


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(default=None, description="usage so far, in every chunk")
    include_obfuscation: Annotated[bool | None, WITHOUT_EFFECT] = None


class Generation(Body):
    """Fields that every request has that generates."""

    model: str = Field(description="a name of /v1/models")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Integer | None = Field(default=None, ge=-1, le=2**31 - 1, description="0 and -1 keep all")
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None,
        max_length=MAX_BIASES,
        description="token id -> what is added to its logit",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,10}$"}},
    )
    allowed_token_ids: TokenIds | None = Field(
        default=None, min_length=1, max_length=MAX_ALLOWED, description="no other token is chosen"
    )
    bad_words: Annotated[list[Stop], Field(max_length=MAX_BAD_WORDS)] | None = Field(
        default=None, description="texts that are not generated"
    )
    seed: Integer | None = Field(default=None, ge=-(2**63), le=MAX_SEED)
    stop: Stops | None = None
    stop_token_ids: TokenIds | None = Field(default=None, max_length=64)
    ignore_eos: bool | None = None
    min_tokens: Integer | None = Field(default=None, ge=0, le=2**31 - 1)
    skip_special_tokens: bool | None = Field(
        default=None, description="whether the text leaves them out; true when left out"
    )
    truncate_prompt_tokens: Integer | None = Field(
        default=None, ge=-1, le=2**31 - 1, description="keep the prompt's last tokens; -1: those that fit"
    )
    priority: Integer | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="where requests wait, lower ones go first; 0 when left out",
    )
    stream: bool | None = None
    routing: RoutingField | None = None
    structured_outputs: StructuredOutputs | None = None
    user: Annotated[Label | None, WITHOUT_EFFECT] = None
    metadata: Annotated[dict[str, Any] | None, WITHOUT_EFFECT] = None
    store: Annotated[Literal[False] | None, WITHOUT_EFFECT] = None
    service_tier: Annotated[Literal["auto", "default"] | None, WITHOUT_EFFECT] = None
    safety_identifier: Annotated[Label | None, WITHOUT_EFFECT] = None
    prompt_cache_key: Annotated[Label | None, WITHOUT_EFFECT] = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for key in biases or {}:
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise ValueError(f"its key {key[:20]!r} is not a token id; keys are decimal token ids")
        return biases

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        if self.truncate_prompt_tokens == 0:
            yield "truncate_prompt_tokens", "it is at least 1, or -1 for as many as fit"

    def grammar(self) -> Grammar | None:
        """What the text has to be."""
        return None if self.structured_outputs is None else self.structured_outputs.grammar()


class Sampling(Generation):
    """Fields that completions and chat completions share."""

    n: Integer | None = Field(default=None, ge=1, le=MAX_N)
    max_tokens: Integer | None = None
    max_completion_tokens: Integer | None = None
    prompt_logprobs: Integer | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    return_token_ids: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @property
    def asked_tokens(self) -> int | None:
        """`max_tokens`, or its newer name."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        if self.stream_options is not None and not self.stream:
            yield "stream_options", "it needs 'stream': true"
        if self.prompt_logprobs is not None and self.stream:
            yield "prompt_logprobs", "it cannot be streamed; leave out 'stream' or 'prompt_logprobs'"
        if self.structured_outputs and self.response_format and self.response_format.type != "text":
            yield "structured_outputs", "it and 'response_format' are one thing; send one of them"
        if self.max_completion_tokens not in (None, self.asked_tokens):
            yield (
                "max_completion_tokens",
                f"'max_tokens' is its other name, and is {self.max_tokens}; send one",
            )

    def grammar(self) -> Grammar | None:
        if self.response_format is None:
            return super().grammar()
        return self.response_format.grammar() or super().grammar()

    def sampling(
        self,
        max_tokens: int,
        *,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
        bad_words: Sequence[Sequence[int]] = (),
    ) -> SamplingParams:
        """These fields as the engine takes them; `bad_words` as token ids."""
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
            allowed_token_ids=tuple(dict.fromkeys(self.allowed_token_ids or ())),
            bad_words=tuple(map(tuple, bad_words)),
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            skip_special_tokens=self.skip_special_tokens is not False,
            grammar=self.grammar(),
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
