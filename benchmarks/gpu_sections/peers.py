"""Others with LoRAs on the same base in the same run: PEFT, and vLLM where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.gpu_sections import bases, stacks
from benchmarks.gpu_sections.engines import engine
from benchmarks.gpu_sections.figures import BASE, FOUR, MIXED, ONE, compositions
from benchmarks.gpu_sections.findings import Findings
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.decode_case import PEFT_MIXED, PEFT_ONE
from benchmarks.instruments.results import Spread
from benchmarks.instruments.timing import interleave
from benchmarks.peers.peft_loras import PeftPeer
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import engine_batch

BATCHES = (1, 8)
RIVALS = {PEFT_ONE: ONE, PEFT_MIXED: MIXED}
"""Peer -> what of ours it is compared with."""


def peers(setting: Setting, found: Findings) -> None:
    for package, pays in (("peft", "its figures are below"), ("vllm", "nothing here runs it yet")):
        there = find_spec(package) is not None
        found.figure(package, f"installed: {pays}" if there else "not installed: left out")
        found.say(f"{package}: {found.document['figures'][package]}")
    if find_spec("peft") is None:
        return
    base = bases.packaged(setting, setting.device)
    registry = stacks.registry(setting, base.identity)
    batches = setting.batches if setting.rehearse else BATCHES
    served = engine(base, registry, backend="cuda", max_batch_size=max(batches), max_context=setting.context)
    peer = PeftPeer(bases.packaged(setting, setting.device))
    domains = tuple(registry.snapshot().domains)
    table: list[list[object]] = []
    for batch in batches:
        with found.attempt(f"decode, {batch} rows"):
            rows = compositions(domains, batch, setting.seed)
            prompts = traffic.random_prompts(base.vocab_size, setting.prompt, batch, setting.seed)
            contestants = {
                name: engine_batch(served, prompts, rows[name])
                for name in (BASE, ONE, FOUR, MIXED)
                if name in rows
            }
            contestants[PEFT_ONE] = peer.summed(prompts, 1)
            if batch > 1:
                contestants[PEFT_MIXED] = peer.mixed(prompts)
            runs = interleave(contestants, setting.rounds, setting.tokens, report=lambda line: None)
            rates = {name: [run.rate for run in of_one] for name, of_one in runs.items()}
            ratios = {
                name: Spread.ratio(rates[RIVALS[name]], rates[name]) for name in rates if name in RIVALS
            }
            found.figure(
                f"decode, {batch} rows",
                {"tokens_per_second": {n: Spread.of(r) for n, r in rates.items()}, "ours_over": ratios},
            )
            table += [[batch, name, Spread.of(rate), ratios.get(name, "")] for name, rate in rates.items()]
            found.table(f"Peers, {base.name}", ["rows", "", "tokens/s", "ours is times as fast"], table)
