"""Find the seven projections of a decoder by role, for any supported family (Llama, Mistral, Qwen, Gemma)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from brainstacks.config import PROJECTIONS
from brainstacks.errors import UnsupportedModel

INPUT_GROUPS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
"""Projections that read one and the same input, and so share a down-GEMM, in forward order."""


@dataclass(frozen=True)
class Site:
    """One projection of one decoder layer.

    Attributes:
        name: of the module in the model, `model.layers.0.self_attn.q_proj`.
        module: the linear (nn.Linear or a quantised one), `[..., d_in] -> [..., d_out]`.
    """

    layer: int
    projection: str
    name: str
    module: nn.Module
    d_in: int
    d_out: int


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The text decoder's layers; vision or audio towers of multimodal checkpoints are not among them.

    Raises:
        UnsupportedModel: the model has no decoder with a `layers` list.
    """
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder is not None else model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise UnsupportedModel(
            f"{type(model).__name__} has no decoder layers; a base is a decoder-only language model"
        )
    return layers


def find_sites(model: nn.Module) -> dict[tuple[int, str], Site]:
    """All projections of `model`, keyed by (layer, projection).

    Raises:
        UnsupportedModel: a layer lacks one of the seven projections, or has it twice.
    """
    sites: dict[tuple[int, str], Site] = {}
    names = {id(module): name for name, module in model.named_modules()}
    for index, layer in enumerate(decoder_layers(model)):
        by_name: dict[str, list[nn.Module]] = {}
        for name, module in layer.named_modules():
            by_name.setdefault(name.rpartition(".")[2], []).append(module)
        for projection in PROJECTIONS:
            found = [m for m in by_name.get(projection, []) if hasattr(m, "in_features")]
            if len(found) != 1:
                raise UnsupportedModel(
                    f"{type(model).__name__}: layer {index} has {len(found)} linears named {projection!r}; "
                    f"stacks need exactly one of each of {', '.join(PROJECTIONS)} "
                    "(Llama, Mistral, Qwen 2/3 and Gemma 3 have them)"
                )
            module = found[0]
            sites[index, projection] = Site(
                index,
                projection,
                names[id(module)],
                module,
                int(module.in_features),  # type: ignore[arg-type]
                int(module.out_features),  # type: ignore[arg-type]
            )
    return sites


def projection_dims(sites: dict[tuple[int, str], Site]) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) per projection.

    Raises:
        UnsupportedModel: they differ between layers.
    """
    dims: dict[str, tuple[int, int]] = {}
    for (layer, projection), site in sites.items():
        shape = (site.d_in, site.d_out)
        if dims.setdefault(projection, shape) != shape:
            raise UnsupportedModel(
                f"{projection} is {dims[projection]} in layer 0 and {shape} in layer {layer}; "
                "stacks need the same shape in every layer"
            )
    return dims
