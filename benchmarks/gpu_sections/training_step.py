"""A training step: seconds and peak memory, on frozen stacks, with layers recomputed or not."""

from __future__ import annotations

import torch

from benchmarks.gpu_sections import bases
from benchmarks.gpu_sections.findings import Findings
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.decoders import LLAMA_3_8B
from benchmarks.instruments.optimizer_step import OptimizerSteps
from benchmarks.instruments.results import Spread
from benchmarks.serving.traffic import random_prompts
from brainstacks.base_model import BaseModel
from training.recipe.settings import RoundConfig, StackRecipe
from training.rounds.device import take_device
from training.rounds.layers_recomputed import layers_recomputed
from training.rounds.optimizer import settled

STACK = StackRecipe(rank=16, experts=4, top_k=2)
FROZEN = (0, 2)


def training_step(setting: Setting, found: Findings) -> None:
    """As the trainer computes: repeatably."""
    device = take_device(setting.device)
    found.figure("optimizer", settled(RoundConfig(), device).optimizer)
    base = bases.packaged(setting, setting.device)
    _steps(setting, found, base, rows=2 if setting.rehearse else 8, tokens=16 if setting.rehearse else 512)
    large = None
    with found.attempt(f"{LLAMA_3_8B} in NF4, weights random, made on the device"):
        large = bases.sized(setting, LLAMA_3_8B)
    if large is not None:
        _steps(setting, found, large, rows=2, tokens=16 if setting.rehearse else 512)


def _steps(setting: Setting, found: Findings, base: BaseModel, rows: int, tokens: int) -> None:
    """All kinds, one after another, so that each one's peak is its own."""
    steps = OptimizerSteps(base, random_prompts(base.vocab_size, tokens, rows, setting.seed), setting.seed)
    cuda = base.device.type == "cuda"
    table: list[list[object]] = []
    for frozen in FROZEN:
        for recomputed in (False, True):
            what = f"{frozen} frozen stacks, layers {'recomputed' if recomputed else 'kept'}"
            with found.attempt(f"{base.name}: {what}"), layers_recomputed(base.model, recomputed):
                step = steps.on_frozen(STACK, frozen)
                step()
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                seconds = Spread.of(steps.timed(step) for _ in range(setting.rounds))
                peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None
                found.figure(f"{base.name}, {what}", {"seconds": seconds, "peak_gigabytes": peak})
                table.append([what, seconds, peak])
                title = f"Training, {base.name}, {rows} rows of {tokens} tokens"
                found.table(title, ["", "s a step", "peak GB"], table)
