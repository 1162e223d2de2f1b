"""What produced an artefact, and what the last bits of a number depend on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from training.data import DomainData


def tool_versions() -> dict[str, str]:
    """Versions of what computes, for the header of an artefact."""
    packages = ("brainstacks", "torch", "transformers", "bitsandbytes")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def data_identity(records: Mapping[str, DomainData]) -> dict[str, Any]:
    """Domain -> name and digest of each of its files, as JSON values."""
    return {name: [[s.name, s.digest] for s in domain.sources] for name, domain in records.items()}


def environment() -> dict[str, Any]:
    """What rounds a sum, beside its terms."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability()
    return {**tool_versions(), "device": device, "threads": torch.get_num_threads()}
