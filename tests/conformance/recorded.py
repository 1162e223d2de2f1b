"""Requests as clients sent them, few enough to be kept: one of each shape."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parents[1] / "fixtures" / "client_requests.json"
TELLING = ("role", "type", "tool_choice")
"""Fields of which each text asks for something else."""


@dataclass(frozen=True)
class Recorded:
    """A request with a JSON body, and the status of its reply. Headers, and keys in them, are not kept."""

    client: str
    path: str
    status: int
    body: Any


def distinct(requests: Iterable[Recorded]) -> list[Recorded]:
    """The first of each client that has its path, status and shape."""
    first: dict[object, Recorded] = {}
    for one in requests:
        first.setdefault((one.client, one.path, one.status, _shape(one.body)), one)
    return list(first.values())


def save(requests: Sequence[Recorded]) -> None:
    lines = ",\n".join(json.dumps(asdict(one), ensure_ascii=False) for one in requests)
    FIXTURE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def load() -> list[Recorded]:
    return [Recorded(**one) for one in json.loads(FIXTURE.read_text(encoding="utf-8"))]


def _shape(value: Any) -> object:
    """Equal for values that differ only in numbers, texts and lengths; the texts of `TELLING` count."""
    if isinstance(value, dict):
        return frozenset(
            (key, item if key in TELLING and isinstance(item, str) else _shape(item))
            for key, item in value.items()
        )
    if isinstance(value, list):
        return frozenset(map(_shape, value))
    return type(value)
