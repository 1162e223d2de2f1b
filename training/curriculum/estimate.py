"""What a run takes: counts, and bytes of memory, from the recipe and the shapes of its base alone.

Counts and weights are exact; activations and logits are upper bounds, for rows that are all full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from brainstacks.config import Quantization
from brainstacks.layers.projections import INPUT_GROUPS, decoder_layers, find_sites, projection_dims
from training.data.batches import LABEL_COST, TOKENS
from training.recipe.recipe import Recipe
from training.rounds.active_stack import ActiveStack
from training.rounds.optimizer import state_bytes

NF4_BLOCK, NF4_GROUP = 64, 256
"""Weights that share an absmax, and absmaxes that share a constant of their own (double quantisation)."""
NF4_TABLES = 4 * (16 + 256 + 1)
"""Bytes of a linear's own code tables and offset, float32."""
GATE_BYTES, FROZEN_GATE_BYTES = 48, 24
"""Kept for each token and expert gate: choice and softmax; in training also noise and balance."""


@dataclass(frozen=True)
class RunSize:
    """How much a run does, where no round ends early and every row is full.

    Attributes:
        trained: parameters of one round in training; the gates' noise, where it is on, is among them.
        stored: parameters of one round in a stack file.
        round_file: bytes of those in the recipe's dtype.
        rounds: of all domains.
        steps, tokens: optimiser steps, and tokens of their rows.
    """

    trained: int
    stored: int
    round_file: int
    rounds: int
    steps: int
    tokens: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, at their peak: in the last round of the last domain.

    Attributes:
        base: its weights as loaded, all of them dequantised in float32; see `base_bytes`.
        frozen: all stacks but the one in training, in the dtype of the computation.
        active: the round in training: float32 weights and gradients, and the optimiser's states, which are
            8 bytes a parameter for AdamW and about 2 for its 8-bit form; see `optimizer.state_bytes`.
        null_space: its directions, float32.
        activations: what one micro-batch keeps for its backward pass; see `activation_bytes`.
        logits: of all positions of a micro-batch and their gradients, or of a forward of an evaluation; only
            response positions have any, so that this is an upper bound.
        router_features: float32, in host memory, and only when the router is trained.
    """

    base: int
    frozen: int
    active: int
    null_space: int
    activations: int
    logits: int
    router_features: int

    @property
    def total(self) -> int:
        """On the device, in the curriculum."""
        return self.base + self.frozen + self.active + self.null_space + self.activations + self.logits


def run_size(recipe: Recipe, model: nn.Module) -> RunSize:
    """Counts of a run of `recipe` on a base that looks like `model`, which may be on the meta device.

    Raises:
        UnsupportedModel: the base lacks a projection.
    """
    active = _active(recipe, model)
    stored = sum(tensor.numel() for tensor in active.export().values())
    rounds = [recipe.rounds_of(domain) for domain in recipe.domains]
    steps = sum(n * recipe.round_of(d, 0).steps for n, d in zip(rounds, recipe.domains, strict=True))
    return RunSize(
        trained=sum(parameter.numel() for parameter in active.parameters()),
        stored=stored,
        round_file=stored * getattr(torch, recipe.stack.dtype).itemsize,
        rounds=sum(rounds),
        steps=steps,
        tokens=steps * recipe.round.accumulation * _micro_batch(recipe),
    )


def _active(recipe: Recipe, model: nn.Module) -> ActiveStack:
    """A round in training, without its weights."""
    config = recipe.stack.config(len(decoder_layers(model)))
    with torch.device("meta"):
        return ActiveStack(config, projection_dims(find_sites(model)), noise=recipe.round.gate_noise)


def own_dtype(recipe: Recipe, model: nn.Module) -> torch.dtype:
    """Of activations and unquantised weights, where a run does not widen them."""
    if recipe.quantization != "none":
        return torch.bfloat16
    return model.config.dtype or torch.float32  # type: ignore[return-value]


def estimate(
    recipe: Recipe, model: nn.Module, device: torch.device, dtype: torch.dtype, earlier: int = 0
) -> MemoryEstimate:
    """Bytes that `recipe` takes on `device`, for a base that looks like `model`, computing in `dtype`.

    Args:
        earlier: frozen rounds that are there before it begins, taken to be of the recipe's shape.

    Raises:
        UnsupportedModel: the base lacks a projection.
    """
    size = run_size(recipe, model)
    quantization = "none" if dtype == torch.float32 else recipe.quantization
    hidden = projection_dims(find_sites(model))["q_proj"][0]
    router, elements = recipe.router, [p.numel() for p in _active(recipe, model).parameters()]
    prompts = len(recipe.domains) * (router.prompts + router.unmeasured + router.held_out)
    return MemoryEstimate(
        base=base_bytes(model, quantization, dtype),
        frozen=(size.rounds - 1 + earlier) * size.stored * dtype.itemsize,
        active=size.trained * (4 + 4) + state_bytes(elements, recipe.round, device),
        null_space=_null_space_bytes(recipe, model),
        activations=activation_bytes(recipe, model, dtype, earlier),
        logits=_logit_bytes(recipe, model, dtype),
        router_features=prompts * router.sequence_length * hidden * 4,
    )


def base_bytes(model: nn.Module, quantization: Quantization, dtype: torch.dtype) -> int:
    """Bytes of a loaded base. Every linear but the head is quantised; all else is in `dtype`.

    A native base holds its file's values, all of them in `dtype`. Of n weights NF4 keeps n / 2 bytes, a byte
    for the absmax of each 64, four for each 256 of those, and its tables; int8 keeps n bytes and a float32
    for each output.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    whole = {id(parameter): parameter.numel() for parameter in model.parameters()}
    total = sum(buffer.nbytes for buffer in model.buffers())
    for module in model.modules():
        if quantization in ("none", "native") or not isinstance(module, nn.Linear) or module is head:
            continue
        weights = whole.pop(id(module.weight))
        if quantization == "nf4":
            blocks = -(-weights // NF4_BLOCK)
            total += -(-weights // 2) + blocks + 4 * -(-blocks // NF4_GROUP) + NF4_TABLES
        else:
            total += weights + 4 * module.out_features
    return total + sum(whole.values()) * dtype.itemsize


def activation_bytes(recipe: Recipe, model: nn.Module, dtype: torch.dtype, earlier: int = 0) -> int:
    """Bytes that the forward of one micro-batch keeps for its backward pass; rough, and rather too many.

    For each token a layer keeps, in elements of `dtype`, with hidden size h, intermediate size m,
    and q and k the widths of queries and of keys (values are as wide):

        2 h + 2 q + 2 k + 4 m     what projections and attention read, and the parts of the MLP's product
        2 N r + F N r             for each projection, with F frozen rounds that are on

    besides a float32 for each input of an RMSNorm, some bytes for each of the N gates of a delta, with
    dropout the inputs once more and their masks, and, once for all tokens, the active weights in `dtype`.
    With gradient checkpointing one layer keeps that at a time, and every layer its input, h. A quantised
    weight is unpacked where it is used, one at a time.
    """
    dims, layers = projection_dims(find_sites(model)), decoder_layers(model)
    itemsize, tokens = dtype.itemsize, _micro_batch(recipe)
    (hidden, queries), keys, wide = dims["q_proj"], dims["k_proj"][1], dims["down_proj"][0]
    rank, frozen = recipe.stack.rank * itemsize, frozen_rounds_on(recipe, earlier)
    delta = recipe.stack.experts * (2 * rank + GATE_BYTES + frozen * (rank + FROZEN_GATE_BYTES))
    kept = itemsize * (2 * hidden + 2 * queries + 2 * keys + 4 * wide)
    kept += 4 * _norm_inputs(layers[0], hidden, queries + keys)
    kept += len(recipe.stack.projections) * delta
    if recipe.round.dropout:
        kept += sum(dims[group[0]][0] for group in INPUT_GROUPS) * (itemsize + 1)
    copies = run_size(recipe, model).trained // len(layers) * itemsize
    per_layer = tokens * kept + copies
    unpacked = max(d_in * d_out for d_in, d_out in dims.values()) * itemsize
    if recipe.round.gradient_checkpointing:
        return per_layer + len(layers) * tokens * hidden * itemsize + unpacked
    return len(layers) * per_layer + unpacked


def _norm_inputs(layer: nn.Module, hidden: int, heads: int) -> int:
    """Elements that a layer's RMSNorms read per token; some families normalise queries and keys as well."""
    of_heads = any(name.endswith("q_norm") for name, _ in layer.named_modules())
    return sum(hidden for name, _ in layer.named_children() if "norm" in name) + of_heads * heads


def _null_space_bytes(recipe: Recipe, model: nn.Module) -> int:
    config, dims = recipe.null_space, projection_dims(find_sites(model))
    if config is None or len(recipe.domains) == 1:
        return 0
    outputs, inputs = [d_out for _, d_out in dims.values()], [dims[names[0]][0] for names in INPUT_GROUPS]
    widths = outputs if config.side == "output" else inputs
    return len(decoder_layers(model)) * sum(4 * width * min(config.directions, width) for width in widths)


def _logit_bytes(recipe: Recipe, model: nn.Module, dtype: torch.dtype) -> int:
    """The head's output, its float32 copy and log-probabilities; in training, gradients of the first two."""
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    itemsize = dtype.itemsize
    training = _micro_batch(recipe) * (2 * itemsize + 12)
    evaluation = max(TOKENS // LABEL_COST, recipe.data.max_tokens) * (itemsize + 8)
    return int(vocabulary) * max(training, evaluation)


def frozen_rounds_on(recipe: Recipe, earlier: int = 0) -> int:
    """Most frozen rounds that a training forward computes: the domain's own, those of earlier domains, and
    `earlier` ones that were there before."""
    rounds = [recipe.rounds_of(domain) for domain in recipe.domains]
    return (max(rounds) if recipe.earlier_stacks == "none" else sum(rounds) + earlier) - 1


def _micro_batch(recipe: Recipe) -> int:
    """Tokens of a forward in training, all rows full."""
    return recipe.round.batch_size * recipe.data.max_tokens
