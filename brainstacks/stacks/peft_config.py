"""What `adapter_config.json` of a PEFT LoRA says, as far as a stack can hold it. No torch here.

Every field of `peft.LoraConfig` is understood, is known to change nothing that an adapter computes, or has to
be off. One that is none of these, of whatever later version of PEFT, is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from brainstacks.errors import InvalidArtifact
from brainstacks.stacks.document import show

T = TypeVar("T")

CONFIG_NAME = "adapter_config.json"
ALL_LINEAR = "all-linear"

NO_EFFECT = frozenset(
    {
        *("auto_mapping", "inference_mode", "peft_version", "revision", "runtime_config"),
        *(
            "lora_dropout",
            "eva_config",
            "megatron_core",
            "qalora_group_size",
        ),  # of training, or of what is off
        "fan_in_fan_out",  # of bases with Conv1D; beside linears PEFT itself turns it off
    }
)
"""Fields that do not change what a trained adapter adds to a decoder's linears."""

CARRIED_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights` that leave the base as it is; the others subtract from its weights."""

_MERGE = "merge it into its base with PEFT's merge_and_unload(), and serve that as the base"
_REFUSED = {
    "alora_invocation_tokens": "it acts after its invocation, a stack everywhere; train a LoRA without it",
    "arrow_config": "Arrow routes between adapters by token; import each of them, and train a meta-router",
    "bias": f"it replaces the base's biases, which all stacks share; {_MERGE}",
    "kasa_config": f"KaSA cuts the base's weights; {_MERGE}",
    "layer_replication": f"it makes another base, of repeated layers; {_MERGE}",
    "lora_bias": f"a stack has no bias; {_MERGE}",
    "megatron_config": "it is of Megatron's parallel linears; save the adapter of a transformers model",
    "modules_to_save": f"it replaces whole modules of the base, which all stacks share; {_MERGE}",
    "target_parameters": f"stacks are of linears, and it is of bare parameters; {_MERGE}",
    "trainable_token_indices": f"it replaces embeddings of the base, which all stacks share; {_MERGE}",
    "use_dora": f"DoRA scales the base's own weights, which all stacks share; {_MERGE}",
    "use_qalora": "QALoRA pools the inputs of its linears; train a LoRA without it",
}
_OTHERWISE = "what it does to the adapter is not known here; train or save the adapter without it"


@dataclass(frozen=True)
class PeftConfig:
    """A PEFT LoRA's configuration. Modules are named as in the base, `model.layers.0.self_attn.q_proj`.

    Attributes:
        base: name of its base, which nobody can check; empty where it has none.
        rank, alpha: of modules that no pattern names.
        rslora: the scale is alpha / sqrt(r), else alpha / r.
        targets: endings of names, or a pattern for the whole name, or `ALL_LINEAR`.
        excluded: the same for modules that are left out.
        layers: of `targets` that are endings, those of these layers alone; None for all.
        layers_pattern: names of the list of layers in a module's name; any where empty.
        rank_pattern, alpha_pattern: pattern for the end of a name -> its rank or alpha; the first counts.
    """

    base: str
    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...] | str
    excluded: tuple[str, ...] | str
    layers: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    @classmethod
    def from_document(cls, document: Any) -> PeftConfig:
        """From the file's JSON.

        Raises:
            InvalidArtifact: it is of no LoRA of a causal language model, or a field is impossible or asks for
                what a stack cannot carry; it is named.
        """
        if not isinstance(document, dict):
            raise InvalidArtifact(f"{CONFIG_NAME} is {show(document)}; it is an object")
        values = {name: value for name, value in document.items() if name not in NO_EFFECT}
        _choice(values, "peft_type", ("LORA",), "stacks are LoRAs; train one of those")
        _choice(values, "task_type", (None, "CAUSAL_LM"), "a base here is a causal language model")
        _choice(values, "init_lora_weights", CARRIED_INITS, _INIT_ADVICE, default=True)
        config = cls(
            base=_take(values, "base_model_name_or_path", _text, "a name or null", ""),
            rank=_take(values, "r", _rank, "an integer of at least 1", 8),
            alpha=_take(values, "lora_alpha", _alpha, "a finite number above 0", 8.0),
            rslora=_take(values, "use_rslora", _flag, "true or false", False),
            targets=_take(values, "target_modules", _names, "a list of names, or a pattern", ()),
            excluded=_take(values, "exclude_modules", _names, "a list of names, or a pattern", ()),
            layers=_take(values, "layers_to_transform", _layers, "a layer or a list of layers", None),
            layers_pattern=_take(values, "layers_pattern", _patterns, "a pattern or a list of them", ()),
            rank_pattern=_take(values, "rank_pattern", _mapping(_rank), "patterns with ranks", {}),
            alpha_pattern=_take(values, "alpha_pattern", _mapping(_alpha), "patterns with alphas", {}),
        )
        for name, value in values.items():
            if not (value is None or value is False or value in ({}, [], "")) and (name, value) != _NO_BIAS:
                reason = _REFUSED.get(name, _OTHERWISE)
                raise InvalidArtifact(
                    f"{CONFIG_NAME} has {name} = {show(value)}, which a stack cannot carry: {reason}"
                )
        config._check()
        return config

    def _check(self) -> None:
        if not self.targets:
            raise InvalidArtifact(
                f"{CONFIG_NAME} has no target_modules; they are a list of names, or a pattern; save it again"
            )
        if isinstance(self.targets, str) and (self.layers is not None or self.layers_pattern):
            raise InvalidArtifact(
                f"{CONFIG_NAME} has layers_to_transform beside target_modules = {show(self.targets)}; as in "
                "PEFT they go with a list of names only, so name the layers in the pattern"
            )

    def targeted(self, module: str) -> bool:
        """Whether PEFT puts a LoRA on the linear `module` of a decoder layer."""
        if isinstance(self.excluded, str):
            if self.excluded and re.fullmatch(self.excluded, module):
                return False
        elif _ends(module, self.excluded):
            return False
        if isinstance(self.targets, str):
            return self.targets.lower() == ALL_LINEAR or bool(re.fullmatch(self.targets, module))
        if module in self.targets:  # a whole name counts whatever its layer
            return True
        return _ends(module, self.targets) and (self.layers is None or self._layer(module) in self.layers)

    def _layer(self, module: str) -> int | None:
        patterns = (
            map(_numbered, self.layers_pattern) if self.layers_pattern else [r".*?\.[^.]*\.(?P<layer>\d+)\."]
        )
        match = next(filter(None, (re.match(pattern, module) for pattern in patterns)), None)
        return int(match["layer"]) if match else None

    def rank_of(self, module: str) -> int:
        """r of the LoRA of `module`."""
        return _first(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """What the LoRA of `module` is multiplied with."""
        rank = self.rank_of(module)
        return _first(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


_NO_BIAS = ("bias", "none")
_INIT_ADVICE = (
    "the others change the base's weights too; save it with path_initial_model_for_weight_conversion, which "
    f"makes it an adapter of the unchanged base, or {_MERGE}"
)


def _ends(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _first(patterns: Mapping[str, T], module: str, default: T) -> T:
    return next((value for key, value in patterns.items() if re.match(_ending(key), module)), default)


def _ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _numbered(pattern: str) -> str:
    return rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\."


# --- reading -------------------------------------------------------------------------------------


def _choice(
    values: dict[str, Any], name: str, allowed: tuple[Any, ...], reason: str, default: Any = None
) -> None:
    value = values.pop(name, default)
    if not any(value is each or (isinstance(each, str) and value == each) for each in allowed):
        raise InvalidArtifact(
            f"{CONFIG_NAME} has {name} = {show(value)}; it is {' or '.join(map(str, allowed))}: {reason}"
        )


def _take(values: dict[str, Any], name: str, read: Callable[[Any], Any], rule: str, default: Any) -> Any:
    """Field `name`, read; `default` where it is absent or null."""
    value = values.pop(name, None)
    try:
        return default if value is None else read(value)
    except (ValueError, OverflowError, RecursionError, re.error) as error:
        raise InvalidArtifact(
            f"{CONFIG_NAME} has {name} = {show(value)}; it is {rule}{f' ({error})' if str(error) else ''}"
        ) from error


def _wrong() -> NoReturn:
    raise ValueError


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _wrong()


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else _wrong()


def _rank(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else _wrong()


def _alpha(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if number else _wrong()


def _list(value: Any, read: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(map(read, value)) if isinstance(value, list) else _wrong()


def _names(value: Any) -> tuple[str, ...] | str:
    if isinstance(value, str) and value.lower() != ALL_LINEAR:
        re.compile(value)
    return value if isinstance(value, str) else _list(value, _text)


def _patterns(value: Any) -> tuple[str, ...]:
    found = _list([value] if isinstance(value, str) else value, _text)
    for pattern in found:
        re.compile(_numbered(pattern))
    return found


def _layers(value: Any) -> tuple[int, ...] | None:
    def layer(each: Any) -> int:
        return each if isinstance(each, int) and not isinstance(each, bool) else _wrong()

    return (_list([value] if isinstance(value, int) else value, layer)) or None


def _mapping(read: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def mapping(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            _wrong()
        for pattern in value:
            re.compile(_ending(pattern))
        return {pattern: read(each) for pattern, each in value.items()}

    return mapping
