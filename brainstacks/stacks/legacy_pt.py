"""One published `stack_N.pt` file: a flat dict of the parameters of every adapted module.

    <module path>.active_stack.experts.<e>.A.weight      [r, d_in]
    <module path>.active_stack.experts.<e>.B.weight      [d_out, r]
    <module path>.active_stack.router.weight             [N, d_in]
    <module path>.active_stack.noise_linear.weight       [N, d_in]   of training only: dropped

Every expected key must be there with its exact shape. Module paths may carry the prefixes of a multimodal
checkpoint; the layers of its vision and audio towers have no part in text serving and are dropped.
`.pt` files are read with `weights_only=True`: no code in them runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from brainstacks.base_identity import BaseIdentity
from brainstacks.config import PROJECTIONS
from brainstacks.errors import InvalidArtifact
from brainstacks.stacks.document import show
from brainstacks.stacks.module_names import ModuleName, Note, is_of_another_tower, note_dropped

Modules = dict[tuple[int, str], dict[str, torch.Tensor]]

_PARAMETER = re.compile(r"(?P<module>.+)\.active_stack\.(?P<name>.+)\.weight")


def read_pt(path: Path, what: str) -> dict[str, Any]:
    """The dict in the `.pt` file at `path`, which messages call `what`, read without running anything in it.

    Raises:
        InvalidArtifact: it is not a file of plain tensors and values, or not a dict.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever the bytes happen to mean
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidArtifact(f"{what} is not a file of plain tensors: {cause}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidArtifact(f"{what} holds a {type(value).__name__}; it holds a dict with names as keys")
    return value


def read_round(path: Path, what: str, base: BaseIdentity, rank: int, note: Note) -> Modules:
    """One round: (layer, projection) -> {"A": [N*r, d_in], "B": [d_out, N*r], "gate": [N, d_in]}, CPU.

    Raises:
        InvalidArtifact: a key is missing, unknown or misshapen; it is named.
    """
    modules = _modules(read_pt(path, what), what, note)
    result: Modules = {}
    experts: int | None = None
    for layer in range(base.layers):
        for projection in PROJECTIONS:
            parameters = modules.pop((layer, projection), None)
            if parameters is None:
                raise InvalidArtifact(
                    f"{what} has nothing for {projection} of layer {layer}; the base has it"
                )
            where = f"{what}, {projection} of layer {layer}"
            d_in, d_out = base.dims[projection]
            experts = experts or _count_experts(parameters)
            A = [_take(parameters, f"experts.{e}.A", (rank, d_in), where) for e in range(experts)]
            B = [_take(parameters, f"experts.{e}.B", (d_out, rank), where) for e in range(experts)]
            gate = _take(parameters, "router", (experts, d_in), where)
            if "noise_linear" in parameters:
                _take(parameters, "noise_linear", (experts, d_in), where)
            if parameters:
                raise InvalidArtifact(f"{where} has the unknown key {show(next(iter(parameters)))}")
            result[layer, projection] = {"A": torch.cat(A, dim=0), "B": torch.cat(B, dim=1), "gate": gate}
    if modules:
        layer, projection = next(iter(modules))
        raise InvalidArtifact(f"{what} has {projection} of layer {layer}; the base has {base.layers} layers")
    return result


def _modules(state: dict[str, Any], what: str, note: Note) -> Modules:
    """The file's tensors by (layer, projection) and parameter name, other towers dropped."""
    modules: Modules = {}
    paths: dict[tuple[int, str], str] = {}
    dropped = 0
    for key, tensor in state.items():
        if is_of_another_tower(key):
            dropped += 1
            continue
        parameter = _PARAMETER.fullmatch(key)
        module = ModuleName.parse(parameter["module"]) if parameter else None
        if parameter is None or module is None or not isinstance(tensor, torch.Tensor):
            raise InvalidArtifact(f"{what} has the unknown key {show(key)}")
        place = (module.layer, module.projection)
        if paths.setdefault(place, parameter["module"]) != parameter["module"]:
            raise InvalidArtifact(
                f"{what} has both {paths[place]!r} and {parameter['module']!r}; one is expected"
            )
        modules.setdefault(place, {})[parameter["name"]] = tensor
    note_dropped(what, dropped, note)
    return modules


def _count_experts(parameters: dict[str, torch.Tensor]) -> int:
    return max(1, sum(name.startswith("experts.") and name.endswith(".A") for name in parameters))


def _take(parameters: dict[str, torch.Tensor], name: str, shape: tuple[int, ...], where: str) -> torch.Tensor:
    tensor = parameters.pop(name, None)
    if tensor is None:
        raise InvalidArtifact(f"{where} lacks '{name}.weight'; it has shape {list(shape)}")
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise InvalidArtifact(
            f"{where}: '{name}.weight' is {tensor.dtype} {list(tensor.shape)}; it needs floats {list(shape)}"
        )
    return tensor
