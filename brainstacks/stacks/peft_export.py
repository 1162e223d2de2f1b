"""A stack of one expert becomes a PEFT LoRA: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from brainstacks.durable import creating_directory, write_file
from brainstacks.errors import InvalidArtifact
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.document import dump_json
from brainstacks.stacks.one_expert import check_one_expert, factors
from brainstacks.stacks.peft_config import CONFIG_NAME
from brainstacks.stacks.peft_import import WEIGHTS_NAME

Names = Mapping[tuple[int, str], str]
"""(layer, projection) -> the linear's name in the base."""


def export_adapter(stack: StackTensors, what: str, base: str, names: Names, directory: Path) -> None:
    """Write `stack`, which messages call `what`, as an adapter; `directory` appears whole or not at all.

    Several rounds become one LoRA of the sum of their ranks.

    Args:
        base: the name that the adapter gives its base.
        names: of all linears that stacks may adapt.

    Raises:
        InvalidArtifact: it has several experts, does not act everywhere, or has no delta at all.
        FileExistsError: there is such a directory.
        StorageFull: no room.
    """
    check_one_expert(stack.config, what)
    tensors: dict[str, Tensor] = {}
    adapted = []
    for place, A, B in factors(stack):
        tensors[f"base_model.model.{names[place]}.lora_A.weight"] = A.contiguous()
        tensors[f"base_model.model.{names[place]}.lora_B.weight"] = B.contiguous()
        adapted.append(place)
    if not adapted:
        raise InvalidArtifact(f"{what} has no delta other than zero; there is nothing to export")
    rank = stack.rounds * stack.config.rank
    alpha = float(
        f"{stack.config.scaling * rank:.12g}"
    )  # without what a root, taken and undone, leaves behind
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "use_rslora": False,
        "target_modules": _targets(adapted, names),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with creating_directory(directory) as making:
        write_file(making / CONFIG_NAME, [dump_json(document, indent=2).encode()])
        write_file(making / WEIGHTS_NAME, [save(tensors, metadata={"format": "pt"})])


def _targets(adapted: list[tuple[int, str]], names: Names) -> list[str]:
    """Projections where all layers have them, else whole names."""
    projections = list(dict.fromkeys(projection for _, projection in adapted))
    if len(adapted) == sum(projection in projections for _, projection in names):
        return projections
    return [names[place] for place in adapted]
