"""A recipe: everything that decides what a training run produces. YAML in, frozen dataclasses out.

Its parts are in `settings`, whose rules hold here too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from brainstacks.base_files import default_quantization
from brainstacks.config import Quantization, from_mapping
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import check_domain_name
from training.recipe.fields import check_fields, shown
from training.recipe.reinforcement import StageRecipe, stages_of
from training.recipe.settings import (
    ComputeMode,
    DataRecipe,
    EarlierMode,
    NullSpaceConfig,
    RoundConfig,
    RouterRecipe,
    StackRecipe,
    check_least,
    require,
)

T = TypeVar("T")

LEAST_WEIGHT = 1e-6
"""Of a source: a smaller share of any data that there is holds no record."""

RECIPES = Path(__file__).parents[1] / "recipes"

FormatName = Literal[
    "prompt_response", "prompt_completion", "alpaca", "messages", "sharegpt", "gsm8k", "medqa", "preference"
]

COLUMNS: Mapping[FormatName, tuple[str, ...]] = {
    "prompt_response": ("prompt", "response"),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations", "system"),
    "gsm8k": ("question", "answer"),
    "medqa": ("question", "options", "answer_idx", "answer"),
    "preference": ("prompt", "chosen", "rejected"),
}
"""Our names of what a row of each format holds; `columns` of a source may say what the row calls them."""


@dataclass(frozen=True)
class SourceRecipe:
    """Where some of a domain's records come from.

    Attributes:
        source: `hub:<dataset id>` (through `datasets`), `jsonl:<file>`, or `reasoning_gym:<generator>`.
        format: how a row is read; see `training.data.formats`. None: as the columns of the first row say.
        split: of a hub dataset; ignored by nothing: other sources refuse it.
        subset: configuration name of a hub dataset, or None.
        revision: commit, tag or branch of a hub dataset; None takes what is newest.
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
    format: FormatName | None = "prompt_response"
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    validation_split: str | None = None
    limit: int | None = None
    weight: float = 1.0
    where: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        kind, _, name = self.source.partition(":")
        require(
            kind in ("hub", "jsonl", "reasoning_gym") and name != "",
            f"source is {self.source!r}; it is hub:<dataset>, jsonl:<file> or reasoning_gym:<generator>",
        )
        check_least(self, 1, "limit")
        check_least(self, LEAST_WEIGHT, "weight")
        require(self.format is not None or not self.columns, "columns are of a format; give the format too")
        known = COLUMNS[self.format] if self.format is not None else ()
        strangers = [name for name in self.columns if name not in known]
        require(
            not strangers,
            f"columns names {', '.join(strangers)}; the format {self.format} reads {', '.join(known)}",
        )
        for name in ("split", "subset", "revision", "validation_split"):
            require(getattr(self, name) is None or kind == "hub", f"{name} is for hub: sources, not {kind}:")
        require(not self.options or kind == "reasoning_gym", f"options is for reasoning_gym:, not {kind}:")


@dataclass(frozen=True)
class DomainRecipe:
    """One domain of the curriculum.

    Attributes:
        name: the domain. Where `--data DIR` holds a directory of that name, its records are
            `DIR/<name>/{train,validation}.jsonl`, in place of `sources`.
        sources: where its records come from.
        licence: of its training data; empty where nobody else is to have what is made of it.
        description: for the model card.
        steps, max_rounds: in place of the recipe's own, for this domain; None takes the recipe's.
        rl: stages of preferences or rewards after its rounds, each a further round.
    """

    name: str
    licence: str = ""
    description: str = ""
    sources: tuple[SourceRecipe, ...] = ()
    steps: int | None = None
    max_rounds: int | None = None
    rl: tuple[StageRecipe, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_domain_name(self.name)
        object.__setattr__(self, "sources", tuple(self.sources))
        check_least(self, 1, "steps", "max_rounds")


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Attributes:
        base, quantization: as for `brainstacks.base_model.load_base`; train on the base as it is served.
        compute: the dtype of activations, and of the base's values; `auto` takes the faster of the base's own
            and float32 (`training.rounds.compute`).
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
    compute: ComputeMode = "auto"
    max_rounds: int = 1
    min_gain: float = 0.002
    earlier_stacks: EarlierMode = "all"
    data: DataRecipe = field(default_factory=DataRecipe)
    stack: StackRecipe = field(default_factory=StackRecipe)
    round: RoundConfig = field(default_factory=RoundConfig)
    null_space: NullSpaceConfig | None = None
    router: RouterRecipe = field(default_factory=RouterRecipe)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "domains", tuple(self.domains))
        check_least(self, 1, "max_rounds")
        check_least(self, 0, "min_gain")
        require(len(self.domains) > 0, "the recipe has no domains; list at least one under `domains:`")
        names = [d.name for d in self.domains]
        repeated = sorted({name for name in names if names.count(name) > 1})
        require(not repeated, f"the recipe has two domains named {', '.join(repeated)}")
        for name in self.router.floors:
            require(
                name in names, f"router.floors names {name!r}; the recipe's domains are {', '.join(names)}"
            )

    def domain(self, name: str) -> DomainRecipe:
        """Raises ConfigError: the recipe has no such domain."""
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise ConfigError(
            f"the recipe has no domain {name!r}; it has {', '.join(d.name for d in self.domains)}"
        )

    def rounds_of(self, domain: DomainRecipe) -> int:
        """Most rounds of `domain`."""
        return domain.max_rounds or self.max_rounds

    def round_of(self, domain: DomainRecipe, number: int) -> RoundConfig:
        """The settings of one round of `domain`: its own steps, and a seed of its own."""
        place = [d.name for d in self.domains].index(domain.name)
        seed = self.round.seed + 1000 * place + number
        return dataclasses.replace(self.round, steps=domain.steps or self.round.steps, seed=seed)

    def stage_of(self, domain: DomainRecipe, number: int) -> RoundConfig:
        """The settings of one stage of `domain`, as those of the round that it is."""
        return domain.rl[number].round_of(self.round_of(domain, self.rounds_of(domain) + number))


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is given twice; give it once", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_recipe(name: str) -> Recipe:
    """The shipped recipe called `name`, or the YAML file at that path.

    Raises:
        ConfigError: no such file, no valid YAML, or an unknown, missing or invalid key, by name.
    """
    try:
        shipped = RECIPES / f"{name}.yaml"
        path = shipped if shipped.is_file() else Path(name)
        content = path.read_bytes()
    except OSError as error:
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ConfigError(
            f"no recipe {shown(name)} ({error.strerror}); give a YAML file, or one of the shipped: {names}"
        ) from error
    try:
        document = yaml.load(content, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no number, no date, nested without end
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
    values = _mapping(document, "a recipe")
    for key, cls in _NESTED.items():
        if values.get(key) is not None:
            values[key] = _part(cls, values[key], key)
    domains = _sequence(values.get("domains", ()), "domains")
    values["domains"] = tuple(_domain(d, f"domain {i}") for i, d in enumerate(domains, 1))
    values.setdefault("quantization", default_quantization(str(values.get("base"))))
    return from_mapping(Recipe, values)


def _domain(document: Any, where: str) -> DomainRecipe:
    values = _mapping(document, where)
    sources = _sequence(values.get("sources", ()), f"sources of {where}")
    values["sources"] = tuple(
        _part(SourceRecipe, s, f"{where}, source {i}") for i, s in enumerate(sources, 1)
    )
    values["rl"] = stages_of(values.get("rl") or (), where)
    return _part(DomainRecipe, values, where)


def _part(cls: type[T], document: Any, where: str) -> T:
    """The `cls` that `document` describes; an error says `where` it stands, for names recur in a recipe."""
    values = _mapping(document, where)
    try:
        return from_mapping(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error


def _mapping(value: Any, what: str) -> dict[str, Any]:
    require(isinstance(value, Mapping), f"{what} is {shown(value)}; it is a mapping of names to values")
    return dict(value)


def _sequence(value: Any, what: str) -> list[Any]:
    require(isinstance(value, list | tuple), f"{what} is {shown(value)}; it is a list")
    return list(value)
