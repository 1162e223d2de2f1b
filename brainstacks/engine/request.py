"""What a caller hands to the engine and what comes back. No torch here: `server` depends on these alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["routed", "base", "ungated", "fixed"]
FinishReason = Literal["stop", "length", "abort"]
Decider = Literal["router", "signature", "request"]
"""Who gave a domain its weight."""

MAX_TOP_LOGPROBS = 20
MAX_GRAMMAR = 1 << 16
"""Most characters of a `Grammar`."""
MAX_WEIGHT = 2.0
"""Fixed weights lie in -2..2: negative ones subtract a skill, |w| > 1 amplifies it, more breaks the text."""


@dataclass(frozen=True)
class CompositionRequest:
    """Which composition a request asks for.

    Attributes:
        mode: `routed` (the meta-router decides), `base` (no stacks), `ungated` (all at 1.0), `fixed`.
        weights: domain -> weight, only with `fixed`; a domain left out has weight 0. The policy's gate
            holds here too: |weight| <= the router's threshold is off.
        top: keep at most this many domains, the heaviest (by |weight|) first.
        sticky: with `routed`, the name of a conversation: its first prompt is routed, those that follow run
            with that route, and so can reuse what is computed of their common beginning.
        stacks: domain -> version number or digest that it has to have where it is applied.
    """

    mode: Mode = "routed"
    weights: Mapping[str, float] = field(default_factory=dict)
    top: int | None = None
    sticky: str | None = None
    stacks: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class StackRef:
    """One published version of a domain stack."""

    version: int
    digest: str


@dataclass(frozen=True)
class Routing:
    """How a request was composed; the routing record that a client sees.

    Attributes:
        probabilities: the router's sigmoid outputs per domain, of a conversation's first prompt where that
            one decides; None when the request was not routed.
        weights: weight per domain: the probability or its floor, the fixed weight, 1.0 for ungated.
        active: the domains that are applied, in the registry's order; one whose |weight| is at or below
            the gate threshold, or that `top` leaves out, is not, whatever `weights` shows.
        stacks: version and digest of each active domain's stack.
        router_ms: milliseconds of the router pass (features and network); 0.0 when it did not run.
        routed_by: who gave each domain its weight: the router, the signature in the stack's file where the
            router was not trained with it, or the request; a domain that nobody decided on is left out.
        gap: probability that no stack helps that is routed to, by their signatures, of the same prompt; None
            where one of them has none, or no prompt was read.
        created: Unix seconds at which the request was routed.
        generation: the registry's manifest number at that moment.
        tenant: whose request it was.
    """

    request_id: str
    mode: Mode
    probabilities: Mapping[str, float] | None
    weights: Mapping[str, float]
    active: tuple[str, ...]
    stacks: Mapping[str, StackRef]
    router_ms: float
    routed_by: Mapping[str, Decider] = field(default_factory=dict)
    gap: float | None = None
    created: float = 0.0
    generation: int = 0
    tenant: str = ""


@dataclass(frozen=True)
class Grammar:
    """What a text has to be.

    Attributes:
        kind: what `text` is: a JSON schema, a regular expression, a JSON list of strings of which one is
            chosen, or a grammar in Lark's or GBNF's notation.
        param: the request field that it came from; errors name it.
    """

    kind: Literal["json", "regex", "choice", "grammar"]
    text: str
    param: str = field(default="grammar", compare=False)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Ranges are checked where a request enters (`server.schemas`).

    Attributes:
        max_tokens: most tokens to generate; 0 only evaluates the prompt.
        temperature: 0 is greedy.
        top_p, top_k, min_p: nucleus mass; most candidates (0 = all); least probability relative to the top.
        presence_penalty, frequency_penalty: subtracted from the logits of generated tokens (OpenAI).
        repetition_penalty: divides positive, multiplies negative logits of seen tokens (1.0 = off).
        logit_bias: token id -> added to its logit.
        allowed_token_ids: no other token is chosen; empty allows all.
        bad_words: token ids of texts that are not generated: none of them gets its last token.
        seed: of this request's own generator; None draws one.
        stop: strings that end the text and are not part of it.
        stop_token_ids: further token ids that end it.
        ignore_eos: go on past the end-of-sequence token.
        min_tokens: no end-of-sequence, and no stop, before this many tokens.
        logprobs: None for none, else how many top alternatives to report per generated token (0..20).
        prompt_logprobs: the same for the prompt's tokens.
        skip_special_tokens: the text leaves out special tokens.
        grammar: what the text has to be. It may end where the grammar accepts, and ends where nothing can
            follow, whatever `ignore_eos` and `min_tokens` say; `stop` and `max_tokens` may cut it short.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    grammar: Grammar | None = None


@dataclass(frozen=True)
class RouteRequest:
    """One prompt, of which only the route is asked. `tenant` as below."""

    request_id: str
    prompt_ids: tuple[int, ...]
    composition: CompositionRequest = CompositionRequest()
    tenant: str = ""

    @property
    def key(self) -> str:
        """Its id among those of all tenants."""
        return request_key(self.tenant, self.request_id)


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, and `n` independent completions of it.

    Completion i uses seed `sampling.seed + i`, so that n completions equal n requests. Where requests wait,
    those of a lower `priority` go first.

    Attributes:
        tenant: whose it is: request ids, records, conversations and reused prefixes are a tenant's own. Free
            of `/`; empty where there is but one.
        recorded: its routing is kept for people; not of what a client did not ask to be generated.
        response_start: index in `prompt_ids` of the first token of a response that it holds already, 1 or
            more; None where it holds none. Stacks that apply to the response alone act from the token before.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    composition: CompositionRequest = CompositionRequest()
    n: int = 1
    tenant: str = ""
    priority: int = 0
    recorded: bool = True
    response_start: int | None = None

    @property
    def key(self) -> str:
        """Its id among those of all tenants."""
        return request_key(self.tenant, self.request_id)


def request_key(tenant: str, request_id: str) -> str:
    """What no request of another tenant has, whatever ids its clients choose."""
    return f"{tenant}/{request_id}" if tenant else request_id


Request = GenerationRequest | RouteRequest


def sequences(request: Request) -> int:
    """How many the engine computes for it."""
    return request.n if isinstance(request, GenerationRequest) else 1


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability (nats) of one token under the model's own distribution.

    It is the log-softmax of the very logits that the token was chosen from, before grammar, temperature,
    penalties, bias and truncation.

    Attributes:
        text: the token's own text (may hold U+FFFD for part of a character).
        token_bytes: its exact bytes.
        top: the most likely tokens, best first, as further `TokenLogprob`s with an empty `top`.
        rank: one more than the tokens that are likelier; None of one in `top`, whose place tells it.
    """

    token_id: int
    logprob: float
    text: str
    token_bytes: bytes
    top: tuple[TokenLogprob, ...] = ()
    rank: int | None = None


@dataclass(frozen=True)
class RoutedEvent:
    """First event of every request: how it was composed. Text follows."""

    routing: Routing
    prompt_tokens: int
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass
class Timing:
    """When what happened to a completion, in seconds of `time.perf_counter`; None while it has not.

    Attributes:
        arrived: the engine took its request in.
        routing, routed: its route began to be made; its request was composed.
        scheduled: it first had a part in a step, or the completion that computed its prompt had.
        first_token: was chosen.
        ended: no further token is.
    """

    arrived: float | None = None
    routing: float | None = None
    routed: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class TextEvent:
    """A piece of completion `index`. Text is whole UTF-8 characters and never holds a part of a stop string.

    Attributes:
        token_ids: the tokens that became visible with this piece; may be empty.
        logprobs: one for each of `token_ids`, when asked for.
        finish_reason: set on a completion's last event, and only there.
        stop_reason: the stop string or token id that ended it, if one did.
        completion_tokens: tokens generated so far, those that ended it included.
        cumulative_logprob: sum of the chosen tokens' log-probabilities so far (nats).
        timing: on a completion's last event.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    completion_tokens: int = 0
    cumulative_logprob: float = 0.0
    timing: Timing | None = None


Event = RoutedEvent | TextEvent
