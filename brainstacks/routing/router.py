"""A router file, loaded: token ids of prompts -> probabilities, batched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.routing.features import mixed_hidden_states, pad_features, pad_prompts
from brainstacks.routing.meta_router import MetaRouter
from brainstacks.stacks.router_artifact import RouterMetadata, check_router_base, read_router_metadata
from brainstacks.stacks.tensors import load_router_tensors


def not_finite(probabilities: Mapping[str, float]) -> str:
    """What is wrong with a router's answer in which some probability is not finite."""
    bad = [domain for domain, p in probabilities.items() if not math.isfinite(p)]
    return f"the router gave {', '.join(bad)} a probability that is not finite"


class Router:
    """The network of a router file and everything that the file says about its use.

    Args:
        metadata: the file's document; features, policy and domains come from it alone.
        network: in eval mode, float32, on the base's device.
    """

    def __init__(self, metadata: RouterMetadata, network: MetaRouter) -> None:
        self.metadata = metadata
        self.config = metadata.config
        self.network = network

    @classmethod
    def load(cls, path: Path, base: BaseModel) -> Router:
        """Load a router file that the registry has checked.

        Raises:
            IncompatibleArtifact: it was made for another base.
        """
        return cls.of(read_router_metadata(path), load_router_tensors(path), base)

    @classmethod
    def of(cls, metadata: RouterMetadata, tensors: Mapping[str, Tensor], base: BaseModel) -> Router:
        """The same from what a checked file holds. Raises as `load`."""
        check_router_base(metadata, base.identity.fingerprint, base.identity.hidden_size)
        network = MetaRouter(metadata.config)
        network.load_state_dict(tensors)
        network.to(base.device, torch.float32).eval().requires_grad_(False)
        return cls(metadata, network)

    @torch.no_grad()
    def probabilities(self, base: BaseModel, prompts: Sequence[Sequence[int]]) -> list[dict[str, float]]:
        """Sigmoid per domain for each prompt, from its first `sequence_length` tokens; one forward for all.

        No stack may be composed while this runs: features are the base's own.
        """
        config = self.config
        input_ids, mask = pad_prompts(prompts, config.sequence_length, base.device)
        features = mixed_hidden_states(
            base.model, input_ids, mid_weight=config.mid_weight, last_weight=config.last_weight
        )
        return self.of_features(features, mask)

    @torch.no_grad()
    def from_features(self, features: Sequence[Tensor]) -> list[dict[str, float]]:
        """The same from the features [T, d] float32 of each prompt's first `sequence_length` tokens."""
        return self.of_features(*pad_features(features))

    @torch.no_grad()
    def of_features(self, features: Tensor, mask: Tensor) -> list[dict[str, float]]:
        """The same from padded features [B, T, d] float32 and their mask [B, T] bool."""
        rows = self.network(features, mask).sigmoid().tolist()
        return [dict(zip(self.config.domains, row, strict=True)) for row in rows]
