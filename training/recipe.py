"""A recipe: everything that decides what a training run produces. YAML in, frozen dataclasses out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from brainstacks.base_model import Quantization
from brainstacks.config import from_mapping
from brainstacks.errors import ConfigError
from training.inner_loop import RoundConfig

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class DomainRecipe:
    """One domain of the curriculum.

    Attributes:
        name: the domain; its files are `<data>/<name>/{train,validation}.jsonl`.
        licence: of its training data.
        description: for the model card.
    """

    name: str
    licence: str
    description: str = ""


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


@dataclass(frozen=True)
class RouterRecipe:
    """How the meta-router is trained (method 6).

    Attributes:
        prompts: training prompts per domain whose outcomes are measured.
        held_out: prompts per domain, none of them trained on, that choose the checkpoint.
        max_tokens: prompt + answer tokens that an outcome is measured on.
        soft_levels: the weights that a helping domain is tried at (method 6c).
        label_prior: share of the domain label in the target; the rest is measured.
        min_gain: nats per token by which a domain must lower the loss to be added.
        margin: least distance of a probability from 0.5 that is not penalised.
        margin_coefficient: weight of that penalty.
        epochs, batch_size, learning_rate: of AdamW with a cosine.
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
    sequence_length: int = 256
    hidden_dim: int = 512
    dropout: float = 0.1
    floors: Mapping[str, float] = field(default_factory=dict)
    gate_threshold: float = 0.12
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "soft_levels", tuple(self.soft_levels))


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Attributes:
        base, quantization: as for `brainstacks.base_model.load_base`; train on the base as it is served.
        max_tokens: longest training example; a longer response is cut.
        selection: training records per domain set aside to choose snapshots; the validation split is
            for reporting and chooses nothing.
        earlier_stacks: what the stacks of earlier domains do while one trains: `all` are on at 1.0, as in
            the paper, or `none`.
        domains: in curriculum order.
    """

    base: str
    domains: tuple[DomainRecipe, ...]
    quantization: Quantization = "nf4"
    max_tokens: int = 256
    selection: int = 64
    earlier_stacks: Literal["all", "none"] = "all"
    stack: StackRecipe = field(default_factory=StackRecipe)
    round: RoundConfig = field(default_factory=RoundConfig)
    router: RouterRecipe = field(default_factory=RouterRecipe)

    def domain(self, name: str) -> DomainRecipe:
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise ConfigError(
            f"the recipe has no domain {name!r}; it has {', '.join(d.name for d in self.domains)}"
        )


def load_recipe(name: str) -> Recipe:
    """The shipped recipe called `name`, or the YAML file at that path.

    Raises:
        ConfigError: no such file, no valid YAML, or an unknown or missing key, by name.
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
    if not isinstance(document, dict):
        raise ConfigError(f"{path.name} is no mapping; a recipe starts with `base:`")
    return recipe_from(document)


def recipe_from(document: Mapping[str, Any]) -> Recipe:
    """A recipe from plain YAML values. Raises ConfigError for unknown or missing keys."""
    values = dict(document)
    nested = {"stack": StackRecipe, "round": RoundConfig, "router": RouterRecipe}
    for key, cls in nested.items():
        if key in values:
            values[key] = from_mapping(cls, values[key])
    values["domains"] = tuple(from_mapping(DomainRecipe, d) for d in values.get("domains", ()))
    recipe = from_mapping(Recipe, values)
    if not recipe.domains:
        raise ConfigError("the recipe has no domains; list at least one under `domains:`")
    if recipe.earlier_stacks not in ("all", "none"):
        raise ConfigError(f"earlier_stacks is {recipe.earlier_stacks!r}; it is all or none")
    return recipe
