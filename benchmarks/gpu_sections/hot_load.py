"""A stack that is loaded while rows decode: what it costs their steps, and how fast it comes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.gpu_sections import bases
from benchmarks.gpu_sections.engines import engine
from benchmarks.gpu_sections.findings import Findings, Mismatch
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.random_stacks import save_random_stack
from benchmarks.instruments.results import Spread, percentile
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import engine_batch
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import Unavailable
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack

ROWS = 8
BEFORE = 2
"""Steps that are not counted: the prefill, and what follows a change of rows."""
CALM = 20
"""Steps before the load that are compared with those during it, and steps after it."""
DOMAIN = "hot"


class _Enough(Exception):
    """The load is over."""


def hot_load(setting: Setting, found: Findings) -> None:
    base = bases.packaged(setting, setting.device)
    file = setting.scratch / "stack.safetensors"
    registry = Registry(setting.scratch / "hot", create=True)
    for name in ("cold", "warm"):
        save_random_stack(file, base.identity, name)
        registry.publish(file)
    rows = 2 if setting.rehearse else ROWS
    served = engine(
        base,
        registry,
        backend=setting.backend,
        max_batch_size=rows,
        max_context=setting.context,
        kv_cache_tokens=rows * setting.context,
        device_stack_bytes=4 << 30,
    )
    rank = 2 if setting.rehearse else 64
    save_random_stack(file, base.identity, DOMAIN, rank=rank)
    with found.attempt("copies to the device, one after another"):
        _copies(setting, found, served, file)
    with found.attempt("steps while a stack is published and loaded"):
        registry.publish(file)
        _under_load(setting, found, served)


def _copies(setting: Setting, found: Findings, served: StepEngine, file: Path) -> None:
    """From memory in which it was packed; the device has nothing else to do."""
    bank = served.stacks.bank
    packed = bank.pack(load_stack(file))
    seconds = []
    for _ in range(1 + setting.rounds):
        started = perf_counter()
        bank.place(packed)
        seconds.append(perf_counter() - started)
    rates = Spread.of(packed.nbytes / each / 1e9 for each in seconds[1:])
    found.figure("copy", {"bytes": packed.nbytes, "gigabytes_per_second": rates})
    found.table("A stack to the device", ["MB", "GB/s"], [[f"{packed.nbytes / 1e6:.0f}", rates]])


def _under_load(setting: Setting, found: Findings, served: StepEngine) -> None:
    """Raises Mismatch: the load failed, or the rows ended before it did."""
    rows = served.config.max_batch_size
    prompts = traffic.random_prompts(served.base.vocab_size, setting.prompt, rows, setting.seed)
    weights = [{"cold": 1.0, "warm": 0.7}] * rows
    calm = 2 if setting.rehearse else CALM
    times: list[float] = []
    span: list[float] = []

    def load() -> None:
        span.append(perf_counter())
        served.serving.sync()
        span.append(perf_counter())

    loading = threading.Thread(target=load, name="load")

    def on_step(fresh: Mapping[int, Sequence[int]]) -> None:
        times.append(perf_counter())
        if len(times) == BEFORE + calm:
            loading.start()
        if len(span) == 2 and times[-calm] > span[1]:
            raise _Enough

    with suppress(_Enough):
        engine_batch(served, prompts, weights).generate(setting.context - setting.prompt - 1, on_step)
    served.abort_all(Unavailable("what was to be measured has been"))
    loading.join()
    if len(span) < 2:
        raise Mismatch("the load failed; its traceback is in the output")
    begin, end = span
    stack = served.stacks.serving.get(DOMAIN)
    if stack is None or stack.key not in served.stacks.bank.keys:
        raise Mismatch(f"{DOMAIN} is not on the device: {', '.join(served.serving.stack_problems)}")
    gaps = [(a, 1e3 * (b - a)) for a, b in itertools.pairwise(times)]
    during = [gap for at, gap in gaps if begin <= at + gap / 1e3 and at <= end]
    before = [gap for at, gap in gaps if at + gap / 1e3 < begin][BEFORE:]
    if times[-1] < end or not before or not during:
        raise Mismatch(f"{len(times)} steps took {times[-1] - times[0]:.2f} s, the load {end - begin:.2f} s")
    figure = {
        "load_seconds": end - begin,
        "rows": rows,
        "before_ms": {"median": median(before), "p99": percentile(before, 99), "max": max(before)},
        "during_ms": {"median": median(during), "p99": percentile(during, 99), "max": max(during)},
    }
    found.figure("under_load", figure)
    table = [
        [
            when,
            len(values),
            *(f"{part:.2f}" for part in (median(values), percentile(values, 99), max(values))),
        ]
        for when, values in (("before", before), (f"during {end - begin:.2f} s", during))
    ]
    found.table(f"Steps of {rows} rows, ms", ["", "steps", "median", "99%", "longest"], table)
