"""What the engine knows of a request that it has taken in."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from brainstacks.engine.completion import Completion
from brainstacks.engine.detokenizer import Detokenizer
from brainstacks.engine.replies import Sink
from brainstacks.engine.request import (
    GenerationRequest,
    Request,
    RoutedEvent,
    Timing,
    TokenLogprob,
)
from brainstacks.engine.sampling.grammar import CompiledGrammar
from brainstacks.engine.sampling.sampler import Sampler
from brainstacks.engine.serving.composer import Composition
from brainstacks.stacks.lease import ServedStack, StackKey
from brainstacks.tokenizer import ChatTokenizer


@dataclass(eq=False)
class Job:
    """A request inside the engine.

    Attributes:
        sink: gets its events, or the error that ended it; of a request for a route, that alone.
        arrival: its place in the order of arrival.
        grammar: of its sampling, compiled.
        composition: set once it is routed; its stacks are held until the job ends.
        completions: its completions, once its stacks are on the device.
        paused: its client is to read first what it has.
        timing: of what its completions have in common.
    """

    request: Request
    sink: Sink
    arrival: int = 0
    grammar: CompiledGrammar | None = None
    composition: Composition | None = None
    completions: list[Completion] = field(default_factory=list)
    paused: bool = False
    timing: Timing = field(default_factory=lambda: Timing(arrived=perf_counter()))

    def pause(self, paused: bool) -> None:
        self.paused = paused
        for completion in self.completions:
            completion.paused = paused

    def open(self, sampler: Sampler, tokenizer: ChatTokenizer | None) -> list[Completion]:
        """Make the completions of a composed request: the first computes the prompt for all of them."""
        request = self.request
        if not isinstance(request, GenerationRequest) or self.composition is None:
            raise ValueError(f"{request.request_id!r} has nothing to generate yet")
        params, composition = request.sampling, self.composition
        start = len(request.prompt_ids) if request.response_start is None else request.response_start
        stacks = composition.lease.stacks.values()
        root = prefix_root(request.tenant, composition.prompt_weights, stacks)
        response_root = None
        if composition.weights is not composition.prompt_weights:
            response_root = start - 1, prefix_root(request.tenant, composition.weights, stacks)
        for index in range(request.n):
            seed = None if params.seed is None else params.seed + index
            self.completions.append(
                Completion(
                    request=request,
                    index=index,
                    sampling_state=sampler.new_state(params, request.prompt_ids, seed),
                    detokenizer=(
                        Detokenizer(
                            tokenizer,
                            params.stop,
                            request.prompt_ids,
                            skip_special_tokens=params.skip_special_tokens,
                        )
                        if tokenizer is not None
                        else None
                    ),
                    matcher=(
                        self.grammar.matcher(ignore_eos=params.ignore_eos)
                        if self.grammar is not None and params.max_tokens > 0
                        else None
                    ),
                    weights=composition.weights,
                    prompt_weights=composition.prompt_weights,
                    response=start - 1,
                    prefix_root=root,
                    response_root=response_root,
                    arrival=self.arrival,
                    leader=self.completions[0] if index else None,
                    scores_prompt=params.prompt_logprobs is not None and index == 0,
                    paused=self.paused,
                    timing=replace(self.timing),
                )
            )
        return self.completions

    def announce(self, logprobs: Sequence[TokenLogprob | None] | None) -> None:
        """Send the `RoutedEvent`, which comes before any text; `logprobs` are the prompt's, if asked for."""
        if self.composition is None:
            raise ValueError(f"{self.request.request_id!r} is not composed yet")
        found = tuple(logprobs) if logprobs is not None else None
        self.sink(RoutedEvent(self.composition.routing, len(self.request.prompt_ids), found))

    @property
    def place(self) -> tuple[int, int]:
        """In the line of those that wait."""
        request = self.request
        return (request.priority if isinstance(request, GenerationRequest) else 0, self.arrival)

    @property
    def over(self) -> bool:
        """Every completion has ended."""
        return all(completion.finish_reason is not None for completion in self.completions)


def prefix_root(
    tenant: str, weights: Mapping[StackKey, float], stacks: Iterable[ServedStack] = ()
) -> Hashable:
    """What prefixes are shared by besides their tokens: what keys and values depend on, which is `weights`,
    each of one of `stacks`; and whose they are: no reuse tells a tenant of another's prompts."""
    return tenant, *sorted((*s.key, s.digest, weights[s.key]) for s in stacks if s.key in weights)
