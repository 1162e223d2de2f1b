"""`ComposedModel`: a base and its stacks for Python users."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel, load_base, parse_dtype
from brainstacks.config import EngineConfig, Quantization, from_mapping
from brainstacks.engine.attribution import TokenAttribution, attribution, variants
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.replies import Reply
from brainstacks.engine.request import (
    CompositionRequest,
    GenerationRequest,
    Request,
    RoutedEvent,
    RouteRequest,
    Routing,
    SamplingParams,
    TextEvent,
)
from brainstacks.errors import BrainstacksError, InvalidRequest
from brainstacks.routing.features import mixed_hidden_states
from brainstacks.routing.policy import Route, active_domains
from brainstacks.stacks.registry import Registry
from brainstacks.weights import Row, Weights, each, responses

TokenIds = Tensor | Sequence[int] | Sequence[Sequence[int]]


class ComposedModel:
    """A base model whose rows are composed of domain stacks. Not thread-safe: one caller at a time."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine

    @classmethod
    def load(
        cls,
        base: str | os.PathLike[str],
        registry: str | Path | None = None,
        quantization: Quantization | None = None,
        device: str = "auto",
        dtype: torch.dtype | str | None = None,
        device_map: str | None = None,
    ) -> ComposedModel:
        """Load a base once, and every active stack and the router of `registry`.

        Args:
            base: local directory, hub id, `.gguf` file, or `packaged:smollm2-135m-instruct`.
            registry: directory or URL of a registry; None for the base alone.
            dtype: `torch.float32` or `"float32"`, say; as `device_map` see `load_base`.

        Raises:
            ConfigError, UnsupportedModel: see `load_base`.
            IncompatibleArtifact, CorruptBlob: an active stack or the router cannot be served.
        """
        loaded = load_base(
            base,
            quantization=quantization,
            device=device,
            dtype=dtype if isinstance(dtype, torch.dtype) else parse_dtype(dtype),
            device_map=device_map,
        )
        return cls.from_base(loaded, Registry(registry) if registry is not None else None)

    @classmethod
    def from_base(cls, base: BaseModel, registry: Registry | None = None) -> ComposedModel:
        """The same on a base that is loaded already, and has no hooks attached.

        Raises:
            IncompatibleArtifact, CorruptBlob: an active stack or the router cannot be served.
        """
        engine = StepEngine(base, registry, EngineConfig(max_queue=sys.maxsize))
        if engine.serving.stack_problems:
            raise BrainstacksError(
                "the registry cannot be served: " + "; ".join(engine.serving.stack_problems)
            )
        return cls(engine)

    @property
    def base(self) -> BaseModel:
        return self._engine.base

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains that are loaded, in the registry's order."""
        return tuple(self._engine.stacks.serving)

    def load_stack(self, domain: str) -> None:
        """Load the registry's active version of `domain`. Raises DomainNotFound."""
        self._engine.serving.load(domain)

    def unload_stack(self, domain: str) -> None:
        """Free `domain`'s memory; the registry keeps it. Raises DomainNotFound."""
        self._engine.serving.unload(domain)

    @torch.no_grad()
    def logits(
        self,
        input_ids: TokenIds,
        weights: Weights = None,
        *,
        response_start: int | Sequence[int] | None = None,
    ) -> Tensor:
        """One forward, each row with its own composition.

        The policy's gate holds: a domain with |weight| <= the router's threshold is not applied.

        Args:
            input_ids: [B, T] or [T].
            response_start: index of the first token of the response, 1 or more, of all rows or of each.
                Stacks that apply to the response alone act from the token before it on. None: rows are
                prompts, and these stacks act on the last token, as they do where a completion begins: not
                for a response to be scored, where they would be missing, nor for rows padded on the right,
                whose last token is padding; give each prompt's length there.

        Returns:
            [B, T, V] float32.

        Raises:
            InvalidRequest: a weight names no loaded domain, there is not one entry per row, or
                `response_start` is not within the rows.
        """
        ids = self._ids(input_ids)
        composer, stacks = self._engine.composer, self._engine.stacks
        active = []
        for row in (self._row(one, line) for one, line in zip(each(weights, len(ids)), ids, strict=True)):
            composer.check(CompositionRequest("fixed", row))
            active.append({d: row[d] for d in active_domains(row, composer.gate_threshold)})
        lease = stacks.acquire({domain: None for row in active for domain in row})
        try:
            lease.wait()
            keys = {domain: stack.key for domain, stack in lease.stacks.items()}
            bound = stacks.bank.bind([{keys[d]: weight for d, weight in row.items()} for row in active])
            where = torch.from_numpy(responses(ids.shape[0], ids.shape[1], response_start)).to(ids.device)
            with self._engine.hooks.composed(*([bound] if bound else []), responses=where):
                output: Tensor = self.base.model(input_ids=ids, use_cache=False).logits
        finally:
            stacks.release(lease)
        return output.float()

    @torch.no_grad()
    def router_features(self, input_ids: TokenIds) -> Tensor:
        """The meta-router's input, from base-only hidden states.

        Args:
            input_ids: [B, T] or [T].

        Returns:
            [B, T, d] float32.
        """
        reader = self._engine.serving.reader
        mix = reader.mix if reader.can_read else (0.45, 0.55)
        ids = self._ids(input_ids)
        return mixed_hidden_states(self.base.model, ids, mid_weight=mix[0], last_weight=mix[1])

    def route(self, text_or_input_ids: str | TokenIds) -> Route:
        """Route one prompt: text, which is put into the chat template as a user's message, or token ids.

        Raises:
            InvalidRequest: several prompts, or no router in the registry.
        """
        prompt = self._prompt(text_or_input_ids)
        if not self._engine.serving.reader.can_read:
            raise InvalidRequest(
                "there is no meta-router in the registry, and no stack with a signature; train and publish "
                "one of them"
            )
        ((reply,),) = self._told([RouteRequest("route", tuple(prompt))])
        if not isinstance(reply, Routing):
            raise TypeError(f"a request for a route got {type(reply).__name__}")
        return Route(reply.probabilities or {}, reply.weights, reply.active, reply.gap)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: str, weights: Weights = ..., *, chat: bool = ..., **sampling: object
    ) -> str: ...

    @overload
    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        weights: Weights = ...,
        *,
        chat: bool = ...,
        **sampling: object,
    ) -> list[str]: ...

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        weights: Weights = "routed",
        *,
        chat: bool = True,
        **sampling: object,
    ) -> str | list[str]:
        """Answer prompts, all in one batch, each with its own composition.

        Args:
            prompts: user messages, which are put into the base's chat template, or token ids.
            chat: False takes texts as they are, for a base without a template.
            sampling: fields of `SamplingParams`: max_tokens (256 unless given), temperature, seed, ...

        Returns:
            the text of each answer; a single text for a single prompt.

        Raises:
            InvalidRequest, ContextTooLong: a prompt or an option breaks a rule.
        """
        if isinstance(prompts, str):
            return self.generate([prompts], weights, chat=chat, **sampling)[0]
        params = from_mapping(SamplingParams, {"max_tokens": 256, **sampling})
        requests = [
            GenerationRequest(f"generate-{i}", tuple(self._prompt(prompt, chat)), params, composition)
            for i, (prompt, composition) in enumerate(
                zip(prompts, map(_composition, each(weights, len(prompts))), strict=True)
            )
        ]
        return ["".join(e.text for e in told if isinstance(e, TextEvent)) for told in self._told(requests)]

    def attribute(
        self,
        prompt: str | TokenIds,
        completion: str | Sequence[int],
        weights: Weights = "routed",
        *,
        chat: bool = True,
    ) -> list[TokenAttribution]:
        """Which stack moved which token of `completion`, an answer to `prompt`.

        Args:
            prompt, weights, chat: as `generate` takes them, of one prompt.
            completion: text or token ids.

        Returns:
            of each token of the completion its log-probabilities under the base, under the composition, and
            without each of its stacks.

        Raises:
            InvalidRequest, ContextTooLong: as `generate`.
        """
        if isinstance(completion, str):
            completion = self.base.chat_tokenizer().encode(completion, add_special_tokens=False)
        ids = self._prompt(prompt, chat)
        row = self._row(each(weights, 1)[0], self._ids(ids)[0])
        active = {d: row[d] for d in active_domains(row, self._engine.composer.gate_threshold)}
        told = self._told(variants("attribute", ids, completion, active))
        events = [event for replies in told for event in replies if isinstance(event, RoutedEvent)]
        return attribution(events[1].routing.stacks, len(completion), events)

    def _told(self, requests: Sequence[Request]) -> list[list[Reply]]:
        """What the engine says to each of `requests`, all in one batch. Raises what ends one of them."""
        for request in requests:  # all of them before the first is taken in: it is all or nothing
            self._engine.check(request)
        told: list[list[Reply]] = [[] for _ in requests]
        for request, replies in zip(requests, told, strict=True):
            self._engine.add(request, replies.append)
        while self._engine.has_work:
            if not self._engine.can_step:
                self._engine.wait()
            self._engine.step()
        for error in (reply for replies in told for reply in replies if isinstance(reply, BrainstacksError)):
            raise error
        return told

    def _prompt(self, prompt: str | TokenIds, chat: bool = True) -> list[int]:
        if isinstance(prompt, str) and not chat:
            return self.base.chat_tokenizer().encode(prompt)
        if isinstance(prompt, str):
            return self.base.chat_tokenizer().encode_chat([{"role": "user", "content": prompt}])
        ids = self._ids(prompt)
        if ids.shape[0] != 1:
            raise InvalidRequest(f"{ids.shape[0]} prompts were given; route one at a time")
        return [int(i) for i in ids[0]]

    def _ids(self, input_ids: TokenIds) -> Tensor:
        ids = torch.as_tensor(input_ids, dtype=torch.long, device=self.base.device)
        return ids[None] if ids.dim() == 1 else ids

    def _row(self, row: Row, ids: Tensor) -> Mapping[str, float]:
        """The weights of a row of token ids [T]."""
        if row == "ungated":
            return dict.fromkeys(self.domains, 1.0)
        return self.route(ids).weights if isinstance(row, str) else row


def _composition(row: Row) -> CompositionRequest:
    if isinstance(row, str):
        return CompositionRequest(row)
    return CompositionRequest("fixed", row) if row else CompositionRequest("base")
