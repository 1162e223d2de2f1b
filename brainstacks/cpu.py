"""What the CPU can do, and what of it may be used.

Nothing may depend on a feature silently: what is found is said in the log, by `/health`, `/version` and in
every benchmark's result. `BRAINSTACKS_CPU` hides features, to see on one machine what another does: `avx2`
leaves AVX2 and what is older, `generic` what every x86-64 has. It is read when `brainstacks` is imported,
before torch and numba read their own variables, which it sets.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from brainstacks.errors import ConfigError

VARIABLE = "BRAINSTACKS_CPU"

_HIDING = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt,+movbe",
    },
    "generic": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "+sse2",
    },
}
"""Value of `BRAINSTACKS_CPU` -> the variables that make torch, oneDNN, MKL and numba do with as much."""

NOTED = (
    "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vnni", "avx512bf16", "amx-int8",
    "amx-bf16", "neon", "dotprod", "i8mm",
)  # fmt: skip
"""Features that decide how fast something here is."""


@dataclass(frozen=True)
class Cpu:
    """Attributes:
    model: the processor's name, for people.
    features: those of `NOTED` that it has and that are not hidden.
    hidden: the value of `BRAINSTACKS_CPU`, empty where everything may be used.
    """

    model: str
    features: tuple[str, ...]
    hidden: str

    def has(self, *features: str) -> bool:
        return all(feature in self.features for feature in features)

    def __str__(self) -> str:
        limit = f", {VARIABLE}={self.hidden}" if self.hidden else ""
        return f"{self.model} ({' '.join(self.features) or 'no vector extension of note'}{limit})"


@cache
def cpu() -> Cpu:
    """This machine's."""
    return Cpu(_model(), tuple(f for f in NOTED if f in _features()), os.environ.get(VARIABLE, ""))


def hide_features(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make torch, oneDNN, MKL and numba do without what `BRAINSTACKS_CPU` hides; before they are imported.

    Raises:
        ConfigError: the variable has another value than `avx2`, `generic` or nothing.
    """
    hidden = environment.get(VARIABLE, "")
    if not hidden:
        return
    if hidden not in _HIDING:
        raise ConfigError(f"{VARIABLE} is {hidden!r}; it is {', '.join(_HIDING)} or not set", param=VARIABLE)
    environment.update(_HIDING[hidden])


def _features() -> frozenset[str]:
    hidden = os.environ.get(VARIABLE, "")
    if hidden:
        listed = _HIDING[hidden]["NUMBA_CPU_FEATURES"].split(",")
        return frozenset(feature.removeprefix("+") for feature in listed)
    from llvmlite import binding

    return frozenset(feature for feature, present in binding.get_host_cpu_features().items() if present)


def _model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()
