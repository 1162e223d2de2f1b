"""Where the time of a decode step goes on the device, kernel by kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_sections.findings import Findings
from benchmarks.gpu_sections.setting import Setting
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import engine_batch
from benchmarks.serving.traffic import Composition
from brainstacks.engine.engine import StepEngine

MOST = 15
"""Kernels that are told, those that take longest."""
BEFORE = 2
"""Steps that pass before the first that is looked at: the prefill, and what follows a change of rows."""
OF_DELTAS = ("down_kernel", "up_kernel")


def profile_decode(
    setting: Setting,
    found: Findings,
    served: StepEngine,
    name: str,
    rows: Sequence[Composition],
    stacked: int,
) -> None:
    """Kernels of one step, on average over some.

    Args:
        stacked: bytes of the stacks that such a step reads.
    """
    prompts = traffic.random_prompts(served.base.vocab_size, setting.prompt, len(rows), setting.seed)
    steps = 1 if setting.rehearse else 16
    events = _events(served, prompts, rows, steps)
    total = sum(microseconds for _, microseconds in events.values())
    deltas = sum(events[key][1] for key in events if key.startswith(OF_DELTAS))
    key = f"{len(rows)} rows, {name}"
    figure: dict[str, Any] = {
        "kernels_us": total,
        "launches": sum(count for count, _ in events.values()),
        "deltas_us": deltas,
        "stack_bytes": stacked,
        "deltas_bytes_per_second": stacked / (deltas * 1e-6) if deltas and stacked else None,
        "kernels": {
            kernel: {"launches": count, "us": microseconds}
            for kernel, (count, microseconds) in events.items()
        },
    }
    found.figure("kernels", {**found.document["figures"].get("kernels", {}), key: figure})
    table = [
        [kernel[:80], f"{count:.1f}", f"{microseconds:.1f}", f"{microseconds / total:.1%}"]
        for kernel, (count, microseconds) in list(events.items())[:MOST]
    ]
    table.append(["all", f"{figure['launches']:.1f}", f"{total:.1f}", ""])
    if figure["deltas_bytes_per_second"]:
        speed = figure["deltas_bytes_per_second"] / 1e9
        table.append([f"deltas alone: {stacked / 1e6:.1f} MB at {speed:.0f} GB/s", "", f"{deltas:.1f}", ""])
    header = ["kernel", "launches a step", "us a step", "of all"]
    found.table(f"Kernels of a decode step, {served.base.name}, {key}", header, table)


def _events(
    served: StepEngine, prompts: Sequence[Sequence[int]], rows: Sequence[Composition], steps: int
) -> dict[str, tuple[float, float]]:
    """Kernel -> launches and microseconds of a step; the longest first. On a CPU, operators.

    Raises:
        RuntimeError: the profiler saw none.
    """
    cuda = served.base.device.type == "cuda"
    # What it traces kernels with crashes where it was torn down and graphs are replayed.
    os.environ.update(DISABLE_CUPTI_LAZY_REINIT="1", TEARDOWN_CUPTI="0")
    recorder = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
    seen = 0

    def on_step(fresh: Mapping[int, Sequence[int]]) -> None:
        nonlocal seen
        seen += 1
        if seen == BEFORE:
            if cuda:
                torch.cuda.synchronize()  # the step in the air is none of those that are counted
            recorder.start()
        elif seen == BEFORE + steps:
            recorder.stop()

    engine_batch(served, prompts, rows).generate(BEFORE + steps + 1, on_step)
    found = {}
    for event in recorder.key_averages():
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        if microseconds > 0:
            found[event.key] = (event.count / steps, microseconds / steps)
    if not found:
        raise RuntimeError("the profiler saw no kernel; it may lack access to the device's counters")
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))
