"""Decode and prefill speed of a base alone and composed, and which kernels the time goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu_sections import bases, kernel_times, stacks
from benchmarks.gpu_sections.engines import engine
from benchmarks.gpu_sections.findings import Findings, LeftOut
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.decoders import GEMMA_3_12B, LLAMA_3_8B
from benchmarks.instruments.results import Spread, met
from benchmarks.instruments.roofline import base_bytes, stack_bytes, step_bytes
from benchmarks.instruments.timing import Run, interleave
from benchmarks.serving import traffic
from benchmarks.serving.asking import ask
from benchmarks.serving.engine_batch import engine_batch, fixed
from benchmarks.serving.traffic import Composition
from brainstacks.base_model import BaseModel
from brainstacks.device import free_bytes, resolve_device
from brainstacks.engine.engine import StepEngine

GOAL = 0.8
"""Of the base's speed, that four stacks are to keep."""
BASE, ONE, FOUR, TEN, MIXED = "base", "one stack", "four of ten", "all ten", "four of ten, others in each row"
NEEDED = {LLAMA_3_8B: 14e9, GEMMA_3_12B: 22e9}
"""Bytes that must be free on the device."""


def packaged_figures(setting: Setting, found: Findings) -> None:
    _figures(setting, found, bases.packaged(setting, setting.device))


def llama_figures(setting: Setting, found: Findings) -> None:
    _random_figures(setting, found, LLAMA_3_8B)


def gemma_figures(setting: Setting, found: Findings) -> None:
    _random_figures(setting, found, GEMMA_3_12B)


def _random_figures(setting: Setting, found: Findings, decoder: str) -> None:
    free = free_bytes(resolve_device(setting.device))
    if not setting.rehearse and free < NEEDED[decoder]:
        raise LeftOut(f"{decoder}: it needs {NEEDED[decoder] / 1e9:.0f} GB, and {free / 1e9:.0f} are free")
    base = None
    with found.attempt(f"{decoder} in NF4, weights random, made on the device"):
        base = bases.sized(setting, decoder)
    if base is not None:
        _figures(setting, found, base)


def _figures(setting: Setting, found: Findings, base: BaseModel) -> None:
    registry = stacks.registry(setting, base.identity)
    served = engine(
        base,
        registry,
        backend=setting.backend,
        max_batch_size=max(setting.batches),
        max_context=setting.context,
        max_prefill_tokens=max(setting.prefills),
        kv_cache_tokens=max(setting.batches) * 2 * (setting.prompt + setting.tokens) + setting.context,
    )
    domains = tuple(registry.snapshot().domains)
    file = registry.blob_path(registry.snapshot().domain(domains[0]).current.digest)
    found.figure("base", {"name": base.name, "quantization": base.quantization, "dtype": base.dtype_name})
    of_each = stack_bytes(served, file)
    read = dict.fromkeys(domains, of_each)
    found.figure("stack_bytes", of_each.always + of_each.experts)
    weights = base_bytes(served)
    found.figure("base_bytes", weights)
    for batch in setting.batches:
        with found.attempt(f"decode, {batch} rows"):
            _decode(setting, found, served, domains, batch)
    for length in setting.prefills:
        with found.attempt(f"prefill, {length} tokens"):
            _prefill(setting, found, served, domains, length)
    for batch in setting.profiled:
        rows = compositions(domains, batch, setting.seed)
        for name in (BASE, FOUR):
            with found.attempt(f"kernels of a decode step, {batch} rows, {name}"):
                stacked = step_bytes(0, rows[name], read).chosen_experts
                kernel_times.profile_decode(setting, found, served, name, rows[name], stacked)


def compositions(domains: Sequence[str], batch: int, seed: int) -> dict[str, list[Composition]]:
    """What is compared -> of what each row is composed."""
    found: dict[str, list[Composition]] = {
        BASE: [{}] * batch,
        ONE: [{domains[0]: 1.0}] * batch,
        FOUR: [traffic.adjacent(domains)] * batch,
        TEN: [dict.fromkeys(domains, 1.0)] * batch,
    }
    if batch > 1:
        found[MIXED] = traffic.distinct(domains, batch, seed)
    return found


def _decode(
    setting: Setting, found: Findings, served: StepEngine, domains: Sequence[str], batch: int
) -> None:
    rows = compositions(domains, batch, setting.seed)
    prompts = traffic.random_prompts(served.base.vocab_size, setting.prompt, batch, setting.seed)
    contestants = {name: engine_batch(served, prompts, weights) for name, weights in rows.items()}
    runs = interleave(contestants, setting.rounds, setting.tokens, report=lambda line: None)
    cases = {**found.document["figures"].get("decode", {}), str(batch): _rates(runs)}
    found.figure("decode", cases)
    table = []
    for size, rates in cases.items():
        for name, case in rates.items():
            ratio = case["of_base"]
            goal = met(ratio.median >= GOAL) if name in (FOUR, MIXED) else ""
            table.append([size, name, case["tokens_per_second"], case["step_ms"], ratio, goal])
    header = ["rows", "", "tokens/s", "ms a step", "of base", f"goal {GOAL}"]
    found.table(f"Decode, {served.base.name}", header, table)


def _rates(runs: Mapping[str, list[Run]]) -> dict[str, dict[str, Spread]]:
    base = [run.rate for run in runs[BASE]]
    return {
        name: {
            "tokens_per_second": Spread.of(run.rate for run in of_one),
            "step_ms": Spread.of(1e3 * len(run.tokens) / run.rate for run in of_one),
            "of_base": Spread.ratio((run.rate for run in of_one), base),
        }
        for name, of_one in runs.items()
    }


def _prefill(
    setting: Setting, found: Findings, served: StepEngine, domains: Sequence[str], length: int
) -> None:
    """One prompt at a time, read in one step."""
    mixes: dict[str, Composition] = {
        name: rows[0] for name, rows in compositions(domains, 1, setting.seed).items()
    }
    numbers = iter(range(1000 * length, 1000 * length + 1000))
    seconds: dict[str, list[float]] = {name: [] for name in mixes}
    for number in range(1 + setting.rounds):
        for name, weights in mixes.items():
            prompt = traffic.random_prompt(served.base.vocab_size, length, next(numbers))
            answer = ask(served, prompt, fixed(weights))
            if number:  # the first round may have met a shape for the first time
                seconds[name].append(answer.first_token_s)
    cases: dict[str, Any] = {
        **found.document["figures"].get("prefill", {}),
        str(length): {
            name: {
                "tokens_per_second": Spread.of(length / each for each in of_one),
                "of_base": Spread.ratio(seconds[BASE], of_one),
            }
            for name, of_one in seconds.items()
        },
    }
    found.figure("prefill", cases)
    table = [
        [size, name, case["tokens_per_second"], case["of_base"]]
        for size, rates in cases.items()
        for name, case in rates.items()
    ]
    found.table(f"Prefill, {served.base.name}", ["tokens", "", "tokens/s", "of base"], table)
