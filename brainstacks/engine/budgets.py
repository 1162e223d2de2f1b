"""How a GPU's free memory is divided between stacks and keys and values, where the options do not say."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.device import free_bytes
from brainstacks.engine.block_manager import BLOCK_TOKENS
from brainstacks.engine.runner.kv_cache import token_bytes
from brainstacks.errors import ConfigError

log = logging.getLogger(__name__)

STACKS = 0.3
"""Of what is free beside the base. It is a limit: room for skills that are yet to be published too."""

KEYS_AND_VALUES = 0.9
"""Of the rest. What remains is for a stack's trial, and for what memory loses to its division."""

WORKSPACE = 1 << 30
"""Bytes on each device for captured steps, activations and libraries."""


def divide(base: BaseModel, config: EngineConfig) -> EngineConfig:
    """`config` with both budgets, of what is free once `base` is loaded and nothing else.

    On a CPU it is as it was: stacks are where they are loaded to, and keys and values take of what they leave
    (`kv_cache.affordable_tokens`).

    Raises:
        ConfigError: the device has not that much.
    """
    if base.device.type == "cpu":
        return config
    free, token = _room(base), token_bytes(base)
    rest = _room(base, WORKSPACE, _logits(base, config))
    stacks, tokens = config.device_stack_bytes, config.kv_cache_tokens
    if stacks is None:
        stacks = int(max(0, min(STACKS * rest, rest - token * (tokens or 0))))
    if tokens is None:
        # Beyond two full batches there could only be ever older prefixes.
        most = 2 * config.max_batch_size * (config.max_context or base.max_context)
        tokens = min(most, int(KEYS_AND_VALUES * (rest - stacks)) // token)
    if tokens < BLOCK_TOKENS or stacks + tokens * token > free:
        raise ConfigError(
            f"{base.where} has {_giga(free)} free beside the base, too few for {_giga(stacks)} of stacks, "
            f"{_giga(max(0, tokens) * token)} of keys and values, and what steps compute in; give less to "
            "--device-stack-bytes, --kv-cache-tokens or --max-prefill-tokens, or take a smaller base"
        )
    log.info(
        "%s has %s free beside the base: %s for stacks, %s for %d tokens of keys and values",
        base.where,
        _giga(free),
        _giga(stacks),
        _giga(tokens * token),
        tokens,
    )
    return replace(config, device_stack_bytes=stacks, kv_cache_tokens=tokens)


def _room(base: BaseModel, workspace: int = 0, logits: int = 0) -> int:
    """Bytes that are free for what every layer takes the same of, beside so many on each device and for the
    logits on the first. Of several devices, the one with the least for each of its layers decides; what
    others have beyond that is left over."""
    layers = dict.fromkeys(base.devices, 0)
    for part in base.parts:
        layers[part.device] += len(part.layers)
    return min(
        (free_bytes(device) - workspace - (logits if device == base.device else 0))
        * base.identity.layers
        // own
        for device, own in layers.items()
    )


def _logits(base: BaseModel, config: EngineConfig) -> int:
    """Bytes of the most that steps compute: a prefill whose every token is scored, and their logarithms."""
    return 2 * config.max_prefill_tokens * base.vocab_size * torch.float32.itemsize


def _giga(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"
