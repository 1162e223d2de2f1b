"""The parts of a recipe: how data, stacks, rounds, the null space and the router are made.

Every class refuses unknown keys (`config.from_mapping`), values of another kind (`fields.check_fields`) and
values outside their range, by name. Units are in the attributes' descriptions; a default is what the paper
uses, where it says, but for what `docs/training.md` lists as departures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from brainstacks.config import PROJECTIONS, Applies, MetaRouterConfig, StackConfig
from brainstacks.errors import ConfigError
from training.recipe.fields import check_fields

EarlierMode = Literal["all", "none", "sampled"]
Contamination = Literal["report", "drop", "reassign"]
ComputeMode = Literal["auto", "float32", "bfloat16"]

SEARCHES = 2
"""Rounds of the router's search over softer weights; each changes the weight of one domain."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition`."""
    if not condition:
        raise ConfigError(message)


def check_least(owner: object, least: float, *names: str) -> None:
    """Raises ConfigError: one of the fields `names` is less; None, which has a meaning of its own, is not."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value >= least, f"{name} is {value}; it is at least {least}")


def check_positive(owner: object, *names: str) -> None:
    """Raises ConfigError: one of the fields `names` is 0 or less; None has a meaning of its own."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value > 0, f"{name} is {value}; it is positive")


@dataclass(frozen=True)
class DataRecipe:
    """How records become examples.

    Attributes:
        max_tokens: longest training row (tokens); a longer response is cut.
        packing: put several examples in one row of `max_tokens`, without attention across them.
        selection: training records per domain set aside to choose snapshots (at most).
        router: training records per domain set aside for the router alone, so that its outcomes are measured
            on what no stack trained on (at most); 0: it borrows selection and training records.
        validation: records per domain set aside for reporting where a source has no validation split
            (at most). They choose nothing. Each of the three takes a fifth of a domain's records at most.
        forgetting: validation records per domain that the forgetting matrix is measured on (count).
        contamination: what to do with prompts that several domains share: `report` them, `drop` them from
            every domain but the first, or `reassign` them all to the domain that holds most of them.
        seed: of the splits.
    """

    max_tokens: int = 512
    packing: bool = False
    selection: int = 64
    router: int = 0
    validation: int = 200
    forgetting: int = 64
    contamination: Contamination = "report"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, 16, "max_tokens")
        check_least(self, 1, "selection", "validation", "forgetting")
        check_least(self, 0, "router", "seed")


@dataclass(frozen=True)
class StackRecipe:
    """Shape of every stack; see `brainstacks.config.StackConfig`.

    Attributes:
        top_k: experts that a token uses; None: two, as in the paper, or the only one.
        applies: where the deltas act: `everywhere`, as in the paper, or on the `response` alone, so that all
            compositions share the prompt's keys and values.
        projections: that carry a delta, in every layer; all seven by default.
        dtype: of the file's tensors, `float32` or `bfloat16`.
    """

    rank: int = 16
    alpha: float = 16.0
    experts: int = 4
    top_k: int | None = None
    applies: Applies = "everywhere"
    projections: tuple[str, ...] = PROJECTIONS
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "projections", tuple(self.projections))
        self.config(layers=1)  # it knows their ranges

    def config(self, layers: int) -> StackConfig:
        """The shape on a base of so many decoder layers."""
        top_k = min(2, self.experts) if self.top_k is None else self.top_k
        return StackConfig(self.rank, self.alpha, self.experts, top_k, self.projections, layers, self.applies)


@dataclass(frozen=True)
class RoundConfig:
    """How one round is trained (paper, section 3.3).

    Attributes:
        steps: optimiser steps.
        batch_size: rows per forward.
        accumulation: forwards per optimiser step; neither its rows nor its loss depend on how it is split.
        learning_rate: peak, after a linear warm-up and before a cosine to a tenth.
        gate_learning_rate: the same of gates and their noise; None: `learning_rate`.
        warmup_steps: steps of the warm-up.
        weight_decay, clip, betas: AdamW's decoupled decay, gradient-norm cap, moment decays.
        optimizer: `adamw`; `adamw_8bit`, with 8-bit states; `paged_adamw_8bit`, whose states host memory
            takes where the device has no room (CUDA only); `auto` takes that on CUDA, else `adamw`.
        dropout: share of each delta's input that its A does not see in training; the gate sees all of it.
        gate_noise: add the learnt noise to the expert gates in training (paper, eq. 3).
        balance_coefficient: weight of the balance loss; 0 turns it off.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        eval_every: steps between evaluations on the selection records.
        patience: evaluations without improvement before stopping.
        spike: nats above the best evaluation at which the round stops.
        checkpoint_every: steps between checkpoints.
        seed: of initialisation, data order, gate noise and sampled earlier stacks.
    """

    steps: int = 400
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 2e-4
    gate_learning_rate: float | None = None
    warmup_steps: int = 10
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit"] = "auto"
    dropout: float = 0.0
    gate_noise: bool = True
    balance_coefficient: float = 0.01
    gradient_checkpointing: bool = False
    eval_every: int = 25
    patience: int = 4
    spike: float = 0.1
    checkpoint_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "betas", tuple(self.betas))
        check_least(
            self, 1, "steps", "batch_size", "accumulation", "eval_every", "patience", "checkpoint_every"
        )
        check_least(self, 0, "warmup_steps", "weight_decay", "balance_coefficient", "spike", "seed")
        check_positive(self, "learning_rate", "gate_learning_rate", "clip")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it is at least 0 and less than 1")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"betas is {list(self.betas)}; both are at least 0 and less than 1",
        )


@dataclass(frozen=True)
class NullSpaceConfig:
    """The null-space projection (paper, section 3.5; method 5).

    Attributes:
        side: `output` keeps a new stack from writing where earlier ones write, as in the paper; `input`
            keeps it from reading what earlier domains' inputs hold (as GPM and InfLoRA do).
        directions: K, most principal directions per delta.
        samples: selection records of the earlier domains that directions are measured on (count).
        oversampling: extra directions of the randomized SVD.
        iterations: its power iterations.
        seed: of its sketch.
    """

    side: Literal["output", "input"] = "output"
    directions: int = 64
    samples: int = 400
    oversampling: int = 16
    iterations: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, 1, "directions", "samples")
        check_least(self, 0, "oversampling", "iterations", "seed")


@dataclass(frozen=True)
class RouterRecipe:
    """How the meta-router is trained (method 6).

    Attributes:
        prompts: training prompts per domain whose outcomes are measured (count).
        unmeasured: further training prompts per domain, with the mean outcome of its measured ones (count).
        held_out: prompts per domain, none of them trained on, that choose the checkpoint (count).
        max_tokens: prompt + answer tokens that an outcome is measured on.
        soft_levels: the weights that a helping domain is tried at (method 6c).
        label_prior: share of the domain label in the target; the rest is measured. Above `gate_threshold` no
            prompt is taught to leave its own domain's stack out.
        min_gain: nats per token by which a change of weight must lower the loss; of the combinations that are
            no further than that from the best, the one with the fewest stacks is taken.
        margin: least distance of a probability from 0.5 that is not penalised.
        margin_coefficient: weight of that penalty.
        nll_coefficient: weight of the NLL (nats per token) that the probabilities are expected to compose.
        epochs, batch_size, learning_rate: of AdamW with a cosine.
        patience: epochs without a lower held-out NLL of the composed model before stopping.
        sequence_length, floors, gate_threshold, hidden_dim, dropout: travel in the router's file.
        seed: of initialisation and order.
    """

    prompts: int = 60
    unmeasured: int = 200
    held_out: int = 12
    max_tokens: int = 160
    soft_levels: tuple[float, ...] = (1.0, 0.7, 0.4)
    label_prior: float = 0.1
    min_gain: float = 0.01
    margin: float = 0.3
    margin_coefficient: float = 0.05
    nll_coefficient: float = 3.0
    epochs: int = 8
    batch_size: int = 16
    learning_rate: float = 8e-4
    patience: int = 4
    sequence_length: int = 256
    hidden_dim: int = 512
    dropout: float = 0.1
    floors: Mapping[str, float] = field(default_factory=dict)
    gate_threshold: float = 0.12
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "soft_levels", tuple(self.soft_levels))
        check_least(self, 1, "prompts", "held_out", "epochs", "batch_size", "patience", "hidden_dim")
        check_least(self, 16, "max_tokens", "sequence_length")
        check_least(self, 0, "unmeasured", "min_gain", "margin_coefficient", "nll_coefficient", "seed")
        check_positive(self, "learning_rate")
        require(0 <= self.label_prior <= 1, f"label_prior is {self.label_prior}; it lies in 0..1")
        require(0 <= self.margin <= 0.5, f"margin is {self.margin}; it lies in 0..0.5")
        for name in ("dropout", "gate_threshold"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} is {value}; it is at least 0 and less than 1")
        for domain, floor in self.floors.items():
            require(
                self.gate_threshold < floor <= 1,
                f"floors.{domain} is {floor}; it lies above gate_threshold ({self.gate_threshold}), for a "
                "weight up to that is not applied, and is at most 1",
            )
        require(
            len(self.soft_levels) > 0 and all(self.gate_threshold < level <= 1 for level in self.soft_levels),
            f"soft_levels is {list(self.soft_levels)}; it is one or more weights above gate_threshold "
            f"({self.gate_threshold}), up to which none is applied, and at most 1",
        )

    def rows(self, domains: int) -> int:
        """Rows that an outcome is measured on: all combinations, then single changes of weight, at most."""
        return int(2**domains + SEARCHES * domains * len(self.soft_levels))

    def config(self, domains: tuple[str, ...], token_dim: int) -> MetaRouterConfig:
        """The network for `domains`, on a base whose hidden states have `token_dim` entries."""
        return MetaRouterConfig(
            domains=domains,
            token_dim=token_dim,
            hidden_dim=self.hidden_dim,
            sequence_length=self.sequence_length,
            floors=self.floors,
            gate_threshold=self.gate_threshold,
            dropout=self.dropout,
        )
