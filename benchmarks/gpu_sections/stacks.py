"""Registries of random stacks, which sections share."""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks.gpu_sections import bases
from benchmarks.gpu_sections.findings import Findings
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.decoders import GEMMA_3_12B, LLAMA_3_8B, projection_sizes
from benchmarks.instruments.random_stacks import publish_random_stacks
from brainstacks.base_identity import BaseIdentity
from brainstacks.stacks.registry import Registry

COUNT = 10
REHEARSED = 4

STRONG = 0.05
"""Deviation of B with which a stack decides what a random base says."""


def strong(setting: Setting, base: BaseIdentity, *, count: int) -> Registry:
    """Of different stacks that decide what `base` says."""
    return registry(setting, base, count=count, alike=False, b_std=STRONG)


def registry(
    setting: Setting, base: BaseIdentity, *, count: int = COUNT, alike: bool = True, **shape: Any
) -> Registry:
    """Of `count` random stacks for `base`, fewer and smaller in a rehearsal; made by whoever asks first.

    Args:
        alike: with the same weights, which speed does not depend on.
        shape: as for `random_stack`.
    """
    if setting.rehearse:
        count, shape = min(count, REHEARSED), {"rank": 2, "projections": ("k_proj", "down_proj"), **shape}
    directory = setting.scratch / "-".join(
        map(str, ["stacks", base.id, base.layers, count, alike, *shape.values()])
    )
    if not directory.is_dir():
        making = directory.with_name(f".{directory.name}")
        shutil.rmtree(making, ignore_errors=True)  # of one whose time was over
        into = Registry(making, create=True)
        publish_random_stacks(into, base, count, seed=setting.seed, alike=alike, **shape)
        making.rename(directory)
    return Registry(directory)


def prepare(setting: Setting, found: Findings) -> None:
    """Write those of the large bases, which takes a CPU its time, while the GPU is busy with others."""
    for decoder in (LLAMA_3_8B, GEMMA_3_12B):
        with found.attempt(f"{COUNT} stacks for {decoder}") as told:
            config = bases.sized_config(setting, decoder)
            identity = BaseIdentity(
                decoder, "0" * 64, config.model_type, config.num_hidden_layers, projection_sizes(config),
                config.hidden_size,
            )  # fmt: skip
            told.append(", ".join(registry(setting, identity).snapshot().domains))
