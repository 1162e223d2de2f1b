"""Others with LoRAs on the packaged base in the same run: PEFT, and vLLM, each where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.gpu_sections import bases, stacks
from benchmarks.gpu_sections.engines import engine
from benchmarks.gpu_sections.figures import MIXED, ONE, compositions
from benchmarks.gpu_sections.findings import Findings
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.decode_case import PEFT_MIXED, PEFT_ONE
from benchmarks.instruments.results import Spread
from benchmarks.instruments.timing import Contestant, SelfTimed, interleave
from benchmarks.peers import vllm_lora
from benchmarks.peers.available import installed
from benchmarks.peers.peft_loras import PeftPeer
from benchmarks.peers.vllm_lora import VllmPeer
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import engine_batch
from brainstacks.engine.engine import StepEngine

BATCHES = (1, 8)
VLLM_ONE = "vLLM: one LoRA r64, bfloat16"
RIVALS = {PEFT_ONE: ONE, PEFT_MIXED: MIXED, VLLM_ONE: ONE}
"""Peer -> what of ours it is compared with."""

Prompts = Sequence[Sequence[int]]
Peer = Callable[[Prompts], Mapping[str, Contestant | SelfTimed]]
"""Its contestants for these prompts."""


def peers(setting: Setting, found: Findings) -> None:
    base = bases.packaged(setting, setting.device)
    registry = stacks.registry(setting, base.identity)
    most = {"max_batch_size": max(_batches(setting)), "max_context": setting.context}
    served = engine(base, registry, backend=setting.backend, **most)
    domains = tuple(registry.snapshot().domains)
    for name, package, enter in (("PEFT", "peft", _peft), ("vLLM", vllm_lora.PACKAGE, _vllm)):
        if not installed(package):
            found.figure(name, "not installed")
            found.say(f"{name} is not installed")
            continue
        peer: Peer | None = None
        with found.attempt(f"{name} has the base and its LoRAs"):
            peer = enter(setting)
        if peer is not None:
            _compare(setting, found, name, peer, served, domains)


def _batches(setting: Setting) -> tuple[int, ...]:
    return setting.batches if setting.rehearse else BATCHES


def _peft(setting: Setting) -> Peer:
    """On a base of its own, quantised as ours."""
    peer = PeftPeer(bases.packaged(setting, setting.device))

    def contestants(prompts: Prompts) -> Mapping[str, Contestant | SelfTimed]:
        one = {PEFT_ONE: peer.summed(prompts, 1)}
        return one | ({PEFT_MIXED: peer.mixed(prompts)} if len(prompts) > 1 else {})

    return contestants


def _vllm(setting: Setting) -> Peer:
    base = bases.packaged(setting, "cpu", "none", torch.bfloat16)
    rows, context = max(_batches(setting)), setting.prompt + setting.tokens + 1
    peer = VllmPeer(base, setting.scratch / "vllm", rows=rows, context=context, seed=setting.seed)
    return lambda prompts: {VLLM_ONE: peer.batch(prompts)}


def _compare(
    setting: Setting, found: Findings, name: str, peer: Peer, served: StepEngine, domains: Sequence[str]
) -> None:
    table: list[list[object]] = []
    for batch in _batches(setting):
        with found.attempt(f"decode beside {name}, {batch} rows"):
            rows = compositions(domains, batch, setting.seed)
            prompts = traffic.random_prompts(served.base.vocab_size, setting.prompt, batch, setting.seed)
            theirs = peer(prompts)
            ours = {RIVALS[one]: engine_batch(served, prompts, rows[RIVALS[one]]) for one in theirs}
            runs = interleave({**ours, **theirs}, setting.rounds, setting.tokens, report=lambda line: None)
            rates = {one: [run.rate for run in of_one] for one, of_one in runs.items()}
            ratios = {one: Spread.ratio(rates[RIVALS[one]], rates[one]) for one in theirs}
            spreads = {one: Spread.of(rate) for one, rate in rates.items()}
            found.figure(
                f"decode beside {name}, {batch} rows", {"tokens_per_second": spreads, "ours_over": ratios}
            )
            table += [[batch, one, spread, ratios.get(one, "")] for one, spread in spreads.items()]
            header = ["rows", "", "tokens/s", "ours is times as fast"]
            found.table(f"{name}, {served.base.name}", header, table)
