"""Every benchmark by name."""

from __future__ import annotations

from benchmarks import (
    contention,
    decode,
    deterministic,
    downstream,
    first_start,
    hot_load,
    http_load,
    nll,
    prefill,
    residency,
    shared_prompts,
    step_profile,
    unknown,
)
from benchmarks.adapter_routers import __main__ as adapter_routers
from benchmarks.http_share import __main__ as http_share
from benchmarks.scaling import __main__ as scaling

BENCHMARKS = {
    "adapter_routers": adapter_routers.app,
    "decode": decode.app,
    "prefill": prefill.app,
    "hot_load": hot_load.app,
    "residency": residency.app,
    "scaling": scaling.app,
    "http_load": http_load.app,
    "http_share": http_share.app,
    "deterministic": deterministic.app,
    "downstream": downstream.app,
    "nll": nll.app,
    "first_start": first_start.app,
    "contention": contention.app,
    "shared_prompts": shared_prompts.app,
    "step_profile": step_profile.app,
    "unknown": unknown.app,
}
