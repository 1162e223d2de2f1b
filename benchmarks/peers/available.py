"""Which peers can take part here: those that are installed, and can run the base."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.instruments.timing import say
from benchmarks.peers import llama_cpp
from brainstacks.base_files import PACKAGED, locate


def installed(package: str) -> bool:
    return find_spec(package) is not None


def gguf_of(base: str) -> Path | None:
    """The GGUF file that `base` names, or that its packages carry."""
    if base in PACKAGED:
        return locate(base).path
    return Path(base) if base.endswith(".gguf") else None


def llama_cpp_file(base: str, device: torch.device) -> Path | None:
    """The GGUF file of `base`, where llama.cpp can be compared with; if not, a line says why."""
    gguf = gguf_of(base)
    reasons = {
        f"it runs on the CPU, and the base on {device.type}": device.type != "cpu",
        "the base is no GGUF file": gguf is None,
        f"{llama_cpp.PACKAGE} is not installed": not installed(llama_cpp.PACKAGE),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        say(f"llama.cpp is left out: {reason}")
        return None
    return gguf
