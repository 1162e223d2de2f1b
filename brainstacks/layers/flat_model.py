"""A base model as the compiled step reads it: the decoder of a family that it knows, laid out in tables.

Llama, Mistral, Qwen 2 and 3 and Gemma 3 differ in biases, norms, windows and the MLP's activation, all of
which are read from the modules of a loaded model. What departs from what `kernels.step` computes is refused
by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brainstacks.config import PROJECTIONS
from brainstacks.errors import UnsupportedModel
from brainstacks.kernels.layout import GROUP, LAYER, LINEAR
from brainstacks.kernels.products import product_address
from brainstacks.kernels.tiles import CHUNK, PANEL
from brainstacks.layers.blocks import BLOCK, LEAST_BLOCK, Blocks
from brainstacks.layers.families import ACTIVATIONS, activation, by_layer_type, check
from brainstacks.layers.panels import Memory, Panels, are_whole, of_blocks, of_values, panel_bytes
from brainstacks.layers.projections import INPUT_GROUPS, Site, decoder_layers

Array = np.ndarray[Any, Any]

FINE, FINEST = 32, 16
"""Most inputs of a layer's linear that share a scale where they become int8, as `benchmarks.nll` measured it:
outliers among more cost more than its rule allows."""
OUTLIERS = (0, 3)
"""Groups whose inputs have the largest (attention's, and the MLP's last product's): they need the finest
scales, unless their weights are NF4, whose own error hides it."""


@dataclass(frozen=True)
class Dims:
    """Sizes of a decoder.

    Attributes:
        width: hidden, filled up to whole panels.
        inputs, outputs: of the widest group, filled up.
        blocks: most blocks of a group's input.
    """

    layers: int
    hidden: int
    width: int
    heads: int
    kv_heads: int
    dim: int
    inputs: int
    outputs: int
    blocks: int
    vocab: int


class FlatModel:
    """Tables of the whole decoder, and everything that they point to.

    Args:
        model: a transformers causal language model on the CPU.
        sites: of it, see `find_sites`.
        blocks: the quantised weight of a layer's projection; None where it is held as values.
        head_blocks: that of the head, if it is quantised.
        fast: multiply int8 with int8 where weights are quantised, and quantise the head; else compute with
            the very values of the weights, in float32.

    Attributes:
        layers, groups, linears: see `kernels.layout`; keys and values are filled in by who owns the cache.
        final_norm: [hidden] float32.
        fast: as given.

    Raises:
        UnsupportedModel: the decoder has something that the compiled step does not compute.
    """

    def __init__(
        self,
        model: Any,
        sites: Mapping[tuple[int, str], Site],
        blocks: Callable[[int, str], Blocks | None],
        head_blocks: Blocks | None,
        *,
        fast: bool,
    ) -> None:
        config = model.config.get_text_config()
        self.fast = fast
        self._memory = Memory()  # of what the tables point to
        self._zeros = 0, 0  # address, and how many
        self._rotary = model.get_decoder().rotary_emb
        check(config, model)
        decoders: Any = decoder_layers(model)
        self._kinds: list[str | None] = sorted(set(config.layer_types)) if by_layer_type(model) else [None]
        self.gelu = ACTIVATIONS[activation(config)]
        self.eps = float(config.rms_norm_eps)
        self.layers = np.zeros(len(decoders), LAYER)
        self.groups = np.zeros(4 * len(decoders) + 1, GROUP)
        self.linears = np.zeros(7 * len(decoders) + 1, LINEAR)
        quantised = False
        for index, decoder in enumerate(decoders):
            self._add_layer(index, decoder, config)
            for group, names in enumerate(INPUT_GROUPS):
                modules = [sites[index, name].module for name in names]
                held = [blocks(index, name) for name in names]
                quantised |= any(one is not None for one in held)
                self._add_group(4 * index + group, 7 * index + PROJECTIONS.index(names[0]), modules, held)
        head = model.get_output_embeddings()
        if head_blocks is None and fast and quantised:
            head_blocks = _rounded(head)
        self._add_group(len(self.groups) - 1, len(self.linears) - 1, [head], [head_blocks])
        self.final_norm = self._norm(model.get_decoder().norm)
        attention = decoders[0].self_attn
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dims = Dims(
            layers=len(decoders),
            hidden=config.hidden_size,
            width=_filled(config.hidden_size, PANEL),
            heads=heads,
            kv_heads=kv_heads,
            dim=int(attention.head_dim),
            inputs=int(self.groups["d_in"].max()),
            outputs=apart(int(self.groups["columns"][:-1].max())),
            blocks=int((self.groups["d_in"] // self.groups["block"]).max()),
            vocab=int(head.out_features),
        )
        self._cos = self._sin = np.zeros((len(self._kinds), 0, self.dims.dim), np.float32)

    @property
    def delta_blocks(self) -> list[int]:
        """Of each input group, how many inputs share a scale; 0 where they are exact, or layers differ."""
        groups = self.groups[:-1].reshape(-1, len(INPUT_GROUPS))
        return [
            int(column["block"][0]) if column["fast"].all() and len(set(column["block"])) == 1 else 0
            for column in groups.T
        ]

    @property
    def nbytes(self) -> int:
        """That a step reads of the weights."""
        return panel_bytes(self.linears, self.linears["offsets"] != 0)

    def angles(self, positions: int) -> tuple[Array, Array]:
        """cos and sin [kinds of layers, at least `positions`, dim] float32, by position."""
        if self._cos.shape[1] < positions:
            reach = 1 << (positions - 1).bit_length()
            ids, like = torch.arange(reach)[None], torch.zeros(1, dtype=torch.float32)
            pairs = [self._rotary(like, ids, *([kind] if kind else [])) for kind in self._kinds]
            self._cos, self._sin = (np.stack([pair[i][0].float().numpy() for pair in pairs]) for i in (0, 1))
        return self._cos, self._sin

    # --- the tables -------------------------------------------------------------------------------

    def _add_layer(self, index: int, decoder: Any, config: Any) -> None:
        attention, layer = decoder.self_attn, self.layers[index]
        own = hasattr(decoder, "pre_feedforward_layernorm")  # Gemma has norms after attention and MLP too
        norms = (
            (
                decoder.input_layernorm,
                decoder.post_attention_layernorm,
                decoder.pre_feedforward_layernorm,
                decoder.post_feedforward_layernorm,
            )
            if own
            else (decoder.input_layernorm, None, decoder.post_attention_layernorm, None)
        )
        layer["norms"] = [self._norm(norm) for norm in norms]
        layer["q_norm"] = self._norm(getattr(attention, "q_norm", None))
        layer["k_norm"] = self._norm(getattr(attention, "k_norm", None))
        window = getattr(attention, "sliding_window", None)
        if config.model_type == "mistral":
            window = config.sliding_window
        layer["window"] = window or 0
        layer["angles"] = self._kinds.index(config.layer_types[index]) if self._kinds != [None] else 0
        layer["scale"] = attention.scaling

    def _norm(self, norm: Any) -> int:
        """Address of its weight, 0 for none; Gemma's is kept less one."""
        if norm is None:
            return 0
        weight = norm.weight.detach().float()
        return self._keep((weight + 1.0 if "Gemma" in type(norm).__name__ else weight).numpy())

    def _add_group(
        self, index: int, first: int, modules: Sequence[nn.Module], blocks: Sequence[Blocks | None]
    ) -> None:
        least = min((found.block for found in blocks if found is not None), default=0)
        if self.fast and index < len(self.groups) - 1:  # the head's are measured to do with more
            exact = all(found is None or found.levels is None or are_whole(found.levels) for found in blocks)
            least = min(least, FINEST if index % 4 in OUTLIERS and exact else FINE)
        column = 0
        biases: list[Array] = []
        packed = []
        for i, (module, found) in enumerate(zip(modules, blocks, strict=True)):
            panels = (
                of_blocks(found, fast=self.fast, block=least)
                if found is not None
                else of_values(_values(module))
            )
            packed.append(panels)
            self._add_linear(first + i, panels, module, column)
            biases.append(_bias(module, PANEL * panels.count))
            column += PANEL * panels.count
        group = self.groups[index]
        bias = np.concatenate(biases)
        if bias.any() and index % 4 in (1, 3):
            raise UnsupportedModel("a bias on o_proj or down_proj")
        group["linears"], group["first"] = len(modules), first
        group["d_in"], group["columns"] = max(panels.d_in for panels in packed), column
        group["block"] = least or group["d_in"]
        group["fast"] = any(panels.fast for panels in packed)
        group["exact"] = any(not panels.fast and panels.offsets is not None for panels in packed)
        group["panels"] = sum(panels.count for panels in packed)
        group["bias"] = self._keep(bias) if bias.any() else self._nothing(column)

    def _add_linear(self, index: int, panels: Panels, module: Any, column: int) -> None:
        linear = self.linears[index]
        linear["product"] = product_address(panels.kind)
        linear["codes"], linear["scales"] = self._keep(panels.codes), self._keep(panels.scales)
        linear["offsets"] = self._keep(panels.offsets) if panels.offsets is not None else 0
        linear["levels"] = self._keep(panels.levels)
        linear["panels"] = panels.count
        linear["codes_step"], linear["scales_step"] = panels.codes[0].nbytes, panels.scales[0].nbytes
        linear["blocks"], linear["chunks"] = panels.d_in // panels.block, panels.block // CHUNK
        linear["fast"], linear["column"] = panels.fast, column
        linear["d_in"], linear["d_out"] = module.in_features, panels.d_out
        linear["projection"] = index % 7

    def _nothing(self, columns: int) -> int:
        """Address of as many zeros at least, which most groups share."""
        if self._zeros[1] < columns:
            self._zeros = self._keep(np.zeros(columns, np.float32)), columns
        return self._zeros[0]

    def _keep(self, array: Array) -> int:
        """Its address, for as long as this model lives."""
        return self._memory.keep(array).ctypes.data


def _rounded(head: Any) -> Blocks | None:
    """The head, rounded to int8 in blocks; None where its inputs are not whole blocks."""
    block = math.gcd(head.in_features, BLOCK)
    if block < LEAST_BLOCK:
        return None
    weight = head.weight.detach().float().numpy()
    blocked = weight.reshape(len(weight), -1, block)
    scales = np.abs(blocked).max(axis=-1) / np.float32(127)
    codes = np.rint(blocked / np.where(scales == 0, 1, scales)[..., None]).astype(np.int8)
    return Blocks(codes.reshape(weight.shape), None, scales, None, block)


def _values(module: Any) -> Array:
    """[d_out, d_in] float32, or bfloat16 as uint16."""
    weight: Tensor = module.weight.detach()
    if type(module).__name__ == "Linear4bit":
        import bitsandbytes.functional as bnb

        weight = bnb.dequantize_4bit(weight, module.weight.quant_state)
    elif type(module).__name__ == "Linear8bitLt":
        largest = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        weight = weight.float() * largest.float()[:, None] / 127
    if weight.dtype == torch.bfloat16:
        return weight.contiguous().view(torch.int16).numpy().view(np.uint16)
    return weight.float().numpy()


def _bias(module: Any, columns: int) -> Array:
    bias = np.zeros(columns, np.float32)
    if module.bias is not None:
        bias[: module.out_features] = module.bias.detach().float().numpy()
    return bias


def apart(columns: int) -> int:
    """Columns of float32 of which neighbouring rows do not lie in the same sets of a cache."""
    return columns + CHUNK if columns % 1024 == 0 else columns


def _filled(count: int, whole: int) -> int:
    return -(-count // whole) * whole
