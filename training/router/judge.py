"""How well a router composes for held-out prompts, in nats: what its checkpoint is chosen by."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.errors import ConfigError
from brainstacks.routing.meta_router import MetaRouter
from brainstacks.routing.router import Router
from brainstacks.stacks.router_artifact import RouterMetadata
from training.router.calibration import calibration
from training.router.outcomes import Outcome
from training.router.prompts import prompt_features
from training.router.stacked_base import StackedBase, name_of, routed_weights


@dataclass(frozen=True)
class Epoch:
    """A network after an epoch of training, judged.

    Attributes:
        router: the network as its file would hold it, in eval mode.
        predicted: [N, D] float32, its probabilities for the held-out prompts.
        bce: of `predicted` against the targets.
        routed: NLL (nats per token) of the held-out answers under what serving would compose.
    """

    number: int
    router: Router
    predicted: Tensor
    bce: float
    routed: float

    def point(self) -> dict[str, float]:
        """For the history of the training."""
        return {"epoch": self.number, "held_out_bce": self.bce, "held_out_nll_routed": self.routed}


class Judge:
    """Held-out outcomes and the yardsticks that they give: token-weighted mean NLL (nats) of the base, of all
    stacks at 1.0, of each prompt's best single stack at 1.0, and of the best that was measured.

    Args:
        targets: [N, D] float32, of the training.
        dtype: of the router's file.
    """

    def __init__(
        self,
        metadata: RouterMetadata,
        stacked: StackedBase,
        outcomes: Sequence[Outcome],
        targets: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._metadata = metadata
        self._composed = stacked
        self._outcomes = outcomes
        self._targets = targets
        self._dtype = dtype
        self._features = prompt_features(metadata.config, stacked, [o.example.prompt for o in outcomes])
        domains = metadata.config.domains
        self._yardsticks = {
            "base": self._mean(o.losses[""] for o in outcomes),
            "ungated": self._mean(o.losses[name_of(domains)] for o in outcomes),
            "best_single": self._mean(min(o.losses[d] for d in domains) for o in outcomes),
            "oracle": self._mean(o.oracle for o in outcomes),
        }

    def _mean(self, losses: Iterable[float]) -> float:
        tokens = [len(o.example.response) for o in self._outcomes]
        return sum(x * n for x, n in zip(losses, tokens, strict=True)) / sum(tokens)

    def judged(self, number: int, network: MetaRouter) -> Epoch:
        """Raises ConfigError: the network gives no finite probabilities."""
        kept = copy.deepcopy(network)
        kept.load_state_dict({k: v.to(self._dtype).float() for k, v in network.state_dict().items()})
        router = Router(self._metadata, kept.eval().requires_grad_(False))
        probabilities = router.from_features(self._features)
        predicted = torch.tensor([list(row.values()) for row in probabilities])
        if not predicted.isfinite().all():
            raise ConfigError(
                f"the router diverged: after epoch {number} its probabilities are not finite; "
                "lower router.learning_rate"
            )
        bce = float(F.binary_cross_entropy(predicted, self._targets))
        examples = [o.example for o in self._outcomes]
        nats = self._composed.losses(examples, routed_weights(self._composed, router, probabilities))
        routed = sum(nats) / sum(len(e.response) for e in examples)
        if not math.isfinite(routed):
            raise ConfigError(
                f"after epoch {number} the routed NLL is {routed}, though none that was measured is; "
                "take another `quantization`"
            )
        return Epoch(number, router, predicted, bce, routed)

    def told(self, epoch: Epoch) -> str:
        yardsticks = ", ".join(f"{name} {nats:.4f}" for name, nats in self._yardsticks.items())
        return (
            f"router epoch {epoch.number}: held-out BCE {epoch.bce:.4f}, routed NLL {epoch.routed:.4f} "
            f"({yardsticks}), regret {epoch.routed - self._yardsticks['oracle']:.4f}"
        )

    def metrics(self, epoch: Epoch) -> dict[str, float]:
        """For the router's file; calibration is against the measured weights."""
        domains = self._metadata.config.domains
        measured = [o.weights[d] for o in self._outcomes for d in domains]
        found = calibration(epoch.predicted.flatten().tolist(), measured)
        return {
            "epoch": epoch.number,
            **{f"held_out_nll_{name}": nats for name, nats in self._yardsticks.items()},
            "held_out_nll_routed": epoch.routed,
            "regret": epoch.routed - self._yardsticks["oracle"],
            "held_out_bce": epoch.bce,
            "calibration_error": found.error,
            "brier": found.brier,
        }
