"""A recipe: everything that decides what a training run produces. YAML in, frozen dataclasses out.

Every class here refuses unknown keys and values outside their range by name. Units are in the attributes'
descriptions; a default is what the paper uses, where it says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from brainstacks.base_model import Quantization
from brainstacks.config import from_mapping
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import check_domain_name

RECIPES = Path(__file__).parent / "recipes"

EarlierMode = Literal["all", "none", "sampled"]
Contamination = Literal["report", "drop", "reassign"]
FormatName = Literal["prompt_response", "alpaca", "messages", "sharegpt", "gsm8k", "medqa", "preference"]


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition`."""
    if not condition:
        raise ConfigError(message)


def _check_choice(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    require(value in allowed, f"{name} is {value!r}; it is one of {', '.join(map(str, allowed))}")


def _check_least(owner: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        require(
            isinstance(value, int | float) and not isinstance(value, bool) and value >= least,
            f"{name} is {value!r}; it is a number of at least {least}",
        )


@dataclass(frozen=True)
class SourceRecipe:
    """Where some of a domain's records come from.

    Attributes:
        source: `hub:<dataset id>` (through `datasets`), `jsonl:<file>`, or `reasoning_gym:<generator>`.
        format: how a row is read; see `training.formats`.
        split: of a hub dataset; ignored by nothing: other sources refuse it.
        subset: configuration name of a hub dataset, or None.
        validation_split: split of a hub dataset that holds validation records, or None to set some aside.
        limit: most rows taken from this source, in its own order; None takes all. A dataset of the hub is
            then streamed, and not downloaded whole.
        weight: relative share of the domain's training records that this source supplies; records of a
            source with a smaller share are left out, never repeated.
        where: column -> value: only rows that have just these values are taken, and count for `limit`. The
            columns are the dataset's own.
        columns: our name -> the dataset's own column name, where they differ.
        options: keyword arguments of a reasoning-gym generator (`seed` and `size` among them).
    """

    source: str
    format: FormatName = "prompt_response"
    split: str | None = None
    subset: str | None = None
    validation_split: str | None = None
    limit: int | None = None
    weight: float = 1.0
    where: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind, _, name = self.source.partition(":")
        require(
            kind in ("hub", "jsonl", "reasoning_gym") and name != "",
            f"source is {self.source!r}; it is hub:<dataset>, jsonl:<file> or reasoning_gym:<generator>",
        )
        _check_choice("format", self.format, FormatName)
        require(self.limit is None or self.limit >= 1, f"limit is {self.limit}; it is at least 1")
        require(self.weight > 0, f"weight is {self.weight}; it is positive")
        for name in ("where", "columns", "options"):
            _mapping(getattr(self, name), name)
        for name, owners in (("split", "hub"), ("subset", "hub"), ("validation_split", "hub")):
            require(getattr(self, name) is None or kind == owners, f"{name} is for hub: sources, not {kind}:")
        require(not self.options or kind == "reasoning_gym", f"options is for reasoning_gym:, not {kind}:")


@dataclass(frozen=True)
class DomainRecipe:
    """One domain of the curriculum.

    Attributes:
        name: the domain. With `--data DIR` its records are `DIR/<name>/{train,validation}.jsonl`, in place
            of `sources`.
        sources: where its records come from.
        licence: of its training data.
        description: for the model card.
        steps, max_rounds: in place of the recipe's own, for this domain; None takes the recipe's.
    """

    name: str
    licence: str
    description: str = ""
    sources: tuple[SourceRecipe, ...] = ()
    steps: int | None = None
    max_rounds: int | None = None

    def __post_init__(self) -> None:
        check_domain_name(self.name)
        object.__setattr__(self, "sources", tuple(self.sources))
        for name in ("steps", "max_rounds"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} of {self.name!r} is {value}; it is at least 1")


@dataclass(frozen=True)
class DataRecipe:
    """How records become examples.

    Attributes:
        max_tokens: longest training row (tokens); a longer response is cut.
        packing: put several examples in one row of `max_tokens`, without attention across them.
        selection: training records per domain set aside to choose snapshots (count).
        router: training records per domain set aside for the router alone, so that its outcomes are measured
            on what no stack trained on (count); 0: it borrows selection and training records.
        validation: records per domain set aside for reporting where a source has no validation split
            (count). They choose nothing.
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
        _check_choice("contamination", self.contamination, Contamination)
        _check_least(self, 16, "max_tokens")
        _check_least(self, 1, "selection", "validation", "forgetting")
        _check_least(self, 0, "router")


@dataclass(frozen=True)
class StackRecipe:
    """Shape of every stack; see `brainstacks.config.StackConfig`.

    Attributes:
        dtype: of the file's tensors, `float32` or `bfloat16`.
    """

    rank: int = 16
    alpha: float = 16.0
    experts: int = 4
    top_k: int = 2
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        require(self.dtype in ("float32", "bfloat16"), f"dtype is {self.dtype!r}; it is float32 or bfloat16")


@dataclass(frozen=True)
class RoundConfig:
    """How one round is trained (paper, section 3.3).

    Attributes:
        steps: optimiser steps.
        batch_size: rows per forward and process.
        accumulation: forwards per optimiser step; the loss does not depend on how a step is split.
        learning_rate: peak, after a linear warm-up and before a cosine to a tenth.
        warmup_steps: steps of the warm-up.
        weight_decay, clip, betas: AdamW's decoupled decay, gradient-norm cap, moment decays.
        optimizer: `adamw`; `paged_adamw_8bit` (CUDA only); `auto` takes the latter on CUDA.
        gate_noise: add the learnt noise to the expert gates in training (paper, eq. 3).
        balance_coefficient: weight of the balance loss; 0 turns it off.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
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
    warmup_steps: int = 10
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: Literal["auto", "adamw", "paged_adamw_8bit"] = "auto"
    gate_noise: bool = True
    balance_coefficient: float = 0.01
    gradient_checkpointing: bool = False
    eval_every: int = 25
    patience: int = 4
    spike: float = 0.1
    checkpoint_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        _check_choice("optimizer", self.optimizer, Literal["auto", "adamw", "paged_adamw_8bit"])
        _check_least(
            self, 1, "steps", "batch_size", "accumulation", "eval_every", "patience", "checkpoint_every"
        )
        _check_least(self, 0, "warmup_steps", "weight_decay", "balance_coefficient", "spike", "seed")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; it is positive")
        require(self.clip > 0, f"clip is {self.clip}; it is positive")


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
        _check_choice("side", self.side, Literal["output", "input"])
        _check_least(self, 1, "directions", "samples")
        _check_least(self, 0, "oversampling", "iterations", "seed")


@dataclass(frozen=True)
class RouterRecipe:
    """How the meta-router is trained (method 6).

    Attributes:
        prompts: training prompts per domain whose outcomes are measured (count).
        held_out: prompts per domain, none of them trained on, that choose the checkpoint (count).
        max_tokens: prompt + answer tokens that an outcome is measured on.
        soft_levels: the weights that a helping domain is tried at (method 6c).
        label_prior: share of the domain label in the target; the rest is measured.
        min_gain: nats per token by which a domain must lower the loss to be added.
        margin: least distance of a probability from 0.5 that is not penalised.
        margin_coefficient: weight of that penalty.
        epochs, batch_size, learning_rate: of AdamW with a cosine.
        patience: epochs without a lower held-out NLL of the composed model before stopping.
        sequence_length, floors, gate_threshold, hidden_dim, dropout: travel in the router's file.
        seed: of initialisation and order.
    """

    prompts: int = 60
    held_out: int = 12
    max_tokens: int = 160
    soft_levels: tuple[float, ...] = (1.0, 0.7, 0.4)
    label_prior: float = 0.2
    min_gain: float = 0.01
    margin: float = 0.3
    margin_coefficient: float = 0.05
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
        object.__setattr__(self, "soft_levels", tuple(self.soft_levels))
        _check_least(self, 1, "prompts", "held_out", "epochs", "batch_size", "patience", "hidden_dim")
        _check_least(self, 16, "max_tokens", "sequence_length")
        require(0 <= self.label_prior <= 1, f"label_prior is {self.label_prior}; it lies in 0..1")
        require(
            len(self.soft_levels) > 0 and all(0 < level <= 1 for level in self.soft_levels),
            f"soft_levels is {list(self.soft_levels)}; it is one or more weights in 0..1",
        )


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Attributes:
        base, quantization: as for `brainstacks.base_model.load_base`; train on the base as it is served.
        max_rounds: most residual-boosting rounds per domain.
        min_gain: nats by which a round must lower the selection NLL to be frozen, and for another to
            follow (the paper's min_loss_delta).
        earlier_stacks: what the stacks of earlier domains do while one trains: `all` are on at 1.0, as in
            the paper, `none` is, or each row of a batch has a `sampled` subset of them at sampled weights.
        null_space: None turns the projection off.
        domains: in curriculum order.
    """

    base: str
    domains: tuple[DomainRecipe, ...]
    quantization: Quantization = "nf4"
    max_rounds: int = 1
    min_gain: float = 0.002
    earlier_stacks: EarlierMode = "all"
    data: DataRecipe = field(default_factory=DataRecipe)
    stack: StackRecipe = field(default_factory=StackRecipe)
    round: RoundConfig = field(default_factory=RoundConfig)
    null_space: NullSpaceConfig | None = None
    router: RouterRecipe = field(default_factory=RouterRecipe)

    def __post_init__(self) -> None:
        _check_choice("quantization", self.quantization, Quantization)
        _check_choice("earlier_stacks", self.earlier_stacks, EarlierMode)
        _check_least(self, 1, "max_rounds")
        _check_least(self, 0, "min_gain")
        require(len(self.domains) > 0, "the recipe has no domains; list at least one under `domains:`")
        names = [d.name for d in self.domains]
        repeated = sorted({name for name in names if names.count(name) > 1})
        require(not repeated, f"the recipe has two domains named {', '.join(repeated)}")

    def domain(self, name: str) -> DomainRecipe:
        """Raises ConfigError: the recipe has no such domain."""
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise ConfigError(
            f"the recipe has no domain {name!r}; it has {', '.join(d.name for d in self.domains)}"
        )

    def round_of(self, domain: DomainRecipe, number: int) -> RoundConfig:
        """The settings of one round of `domain`: its own steps, and a seed of its own."""
        place = [d.name for d in self.domains].index(domain.name)
        seed = self.round.seed + 1000 * place + number
        return dataclasses.replace(self.round, steps=domain.steps or self.round.steps, seed=seed)


def load_recipe(name: str) -> Recipe:
    """The shipped recipe called `name`, or the YAML file at that path.

    Raises:
        ConfigError: no such file, no valid YAML, or an unknown, missing or invalid key, by name.
    """
    shipped = RECIPES / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ConfigError(f"no recipe {name!r}; give a YAML file, or one of the shipped: {names}")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name} is no valid YAML: {error}") from error
    return recipe_from(document)


_NESTED: Mapping[str, type[Any]] = {
    "data": DataRecipe,
    "stack": StackRecipe,
    "round": RoundConfig,
    "null_space": NullSpaceConfig,
    "router": RouterRecipe,
}


def recipe_from(document: Mapping[str, Any]) -> Recipe:
    """A recipe from plain YAML values. Raises ConfigError as `load_recipe` does."""
    values = dict(_mapping(document, "a recipe"))
    for key, cls in _NESTED.items():
        if values.get(key) is not None:
            values[key] = from_mapping(cls, _mapping(values[key], key))
    values["domains"] = tuple(_domain(d) for d in _sequence(values.get("domains", ()), "domains"))
    return from_mapping(Recipe, values)


def _domain(document: Any) -> DomainRecipe:
    values = dict(_mapping(document, "an entry of domains"))
    sources = _sequence(values.get("sources", ()), "sources")
    values["sources"] = tuple(from_mapping(SourceRecipe, _mapping(s, "an entry of sources")) for s in sources)
    return from_mapping(DomainRecipe, values)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    require(isinstance(value, Mapping), f"{what} is {value!r}; it is a mapping of names to values")
    return dict(value)


def _sequence(value: Any, what: str) -> list[Any]:
    require(isinstance(value, list | tuple), f"{what} is {value!r}; it is a list")
    return list(value)
