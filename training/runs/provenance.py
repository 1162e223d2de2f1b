"""What produced an artefact, and what the last bits of a number depend on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from training.data.domains import DomainData
from training.data.records import Record, opening_key


def tool_versions() -> dict[str, str]:
    """Versions of what computes, for the header of an artefact."""
    packages = ("brainstacks", "torch", "transformers", "bitsandbytes")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def data_identity(records: Mapping[str, DomainData]) -> dict[str, Any]:
    """Domain -> digest of each of its files, and of the questions that its stack may know; as JSON values.

    The latter tells splits apart that other domains decide about, by what they share with this one.
    """
    return {
        name: {
            "sources": [[source.name, source.digest] for source in domain.sources],
            "trained on": _questions([*domain.train, *domain.selection]),
        }
        for name, domain in records.items()
    }


def _questions(records: Sequence[Record]) -> str:
    """SHA-256 of the set of first questions."""
    questions = sorted({opening_key(record) for record in records})
    return hashlib.sha256(json.dumps(questions).encode()).hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """What rounds a sum on `device`, beside its terms."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
    return {**tool_versions(), "device": name, "threads": torch.get_num_threads()}
