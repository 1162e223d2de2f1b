"""What produced an artefact, and what the last bits of a number depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch


def tool_versions() -> dict[str, str]:
    """Versions of what computes, for the header of an artefact."""
    packages = ("brainstacks", "torch", "transformers", "bitsandbytes")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def environment() -> dict[str, Any]:
    """What rounds a sum, beside its terms."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability()
    return {**tool_versions(), "device": device, "threads": torch.get_num_threads()}
