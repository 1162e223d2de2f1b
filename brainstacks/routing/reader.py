"""What reads a prompt for its route: the router for the domains that it was trained with, signatures for the
others, over the same features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import Features
from brainstacks.routing.features import mixed_hidden_states, pad_features, pad_prompts
from brainstacks.routing.policy import GATE_THRESHOLD
from brainstacks.routing.router import Router
from brainstacks.routing.signature import Signature, Signatures, gaps, probabilities


@dataclass(frozen=True)
class Served:
    """What a reader has to know of a stack that is served: which one, and its signature, if it has one.

    Attributes:
        problem: why the signature that its file has cannot be used.
    """

    digest: str
    signature: Signature | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Reading:
    """What was made of a prompt.

    Attributes:
        probabilities: per domain that is decided on: the router's sigmoid, or what its signature says.
        gap: probability that the prompt is of none of the domains; None where one that is decided on has no
            signature, for its prompts would be taken for strangers.
    """

    probabilities: Mapping[str, float]
    gap: float | None = None


class Reader:
    """A router, signatures, or both. A signature of other features than the router's is not used.

    Args:
        router: None where there is none.
        stacks: domain -> what is served.

    Attributes:
        deciders: domain -> who decides on it; a domain that nobody decides on is not in it.
    """

    def __init__(self, router: Router | None, stacks: Mapping[str, Served], device: torch.device) -> None:
        self.router = router
        found = {domain: stack.signature for domain, stack in stacks.items() if stack.signature is not None}
        of = [router.config.features] if router is not None else [s.config.features for s in found.values()]
        self._features: Features | None = of[0] if of else None
        used = {domain: s for domain, s in found.items() if s.config.features == self._features}
        self._signatures = Signatures(used, device) if used else None
        self._digests = {domain: stack.digest for domain, stack in stacks.items()}
        self.deciders: dict[str, Literal["router", "signature"]] = {}
        for domain, stack in stacks.items():
            if router is not None and router.metadata.knows(domain, stack.digest):
                self.deciders[domain] = "router"
            elif domain in used:
                self.deciders[domain] = "signature"

        self._knows_all = all(domain in used for domain in self.deciders)

    @property
    def sequence_length(self) -> int:
        """Tokens of a prompt that are read."""
        return self._read[0]

    @property
    def mix(self) -> tuple[float, float]:
        """Weights of the middle and the last hidden state."""
        return self._read[1:]

    @property
    def _read(self) -> Features:
        if self._features is None:
            raise ValueError("there is neither a router nor a signature, and so nothing to read a prompt for")
        return self._features

    @property
    def can_read(self) -> bool:
        """There is a router, or a signature."""
        return self._features is not None

    @property
    def floors(self) -> Mapping[str, float]:
        return self.router.config.floors if self.router is not None else {}

    @property
    def gate_threshold(self) -> float:
        return self.router.config.gate_threshold if self.router is not None else GATE_THRESHOLD

    def decides(self, domain: str, digest: str) -> Literal["router", "signature"] | None:
        """Who decides on the stack with this digest, if anybody."""
        return self.deciders.get(domain) if self._digests.get(domain) == digest else None

    def still_holds(self, other: Reader) -> bool:
        """Whether what `other` read would be read again: the same router, and of the domains that their
        signatures decided on the same stacks. Others may have come."""
        return self.router is other.router and all(
            self.decides(domain, other._digests[domain]) == "signature"
            for domain, decider in other.deciders.items()
            if decider == "signature"
        )

    @torch.no_grad()
    def read(self, base: BaseModel, prompts: Sequence[Sequence[int]]) -> list[Reading]:
        """Of each prompt, from its first `sequence_length` tokens; one forward for all.

        No stack may be composed while this runs: features are the base's own.
        """
        input_ids, mask = pad_prompts(prompts, self.sequence_length, base.device)
        mid, last = self.mix
        return self._readings(
            mixed_hidden_states(base.model, input_ids, mid_weight=mid, last_weight=last), mask
        )

    @torch.no_grad()
    def from_features(self, features: Sequence[Tensor]) -> list[Reading]:
        """The same from the features [T, d] float32 of each prompt's first `sequence_length` tokens."""
        return self._readings(*pad_features(features))

    def _readings(self, features: Tensor, mask: Tensor) -> list[Reading]:
        routed = [{}] * len(features) if self.router is None else self.router.of_features(features, mask)
        if self._signatures is None:
            return [Reading(row) for row in routed]
        scores = self._signatures.scores(features, mask)
        signed, gap = probabilities(scores).tolist(), gaps(scores).tolist()
        return [
            Reading(row | self._by_signature(values), missing if self._knows_all else None)
            for row, values, missing in zip(routed, signed, gap, strict=True)
        ]

    def _by_signature(self, values: Sequence[float]) -> dict[str, float]:
        """Of all the signatures' probabilities, those that count."""
        domains = self._signatures.domains if self._signatures is not None else ()
        return {
            domain: p
            for domain, p in zip(domains, values, strict=True)
            if self.deciders[domain] == "signature"
        }
