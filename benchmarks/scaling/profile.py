"""What a replica takes for a step, a prompt and a load: constants of committed measurements, and which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.instruments.results import RESULTS
from brainstacks.config import EngineConfig
from brainstacks.errors import ConfigError

MEASURED = "cpu-2-amx"
"""Kind of the host whose results are read."""

R16 = "r16"
"""Stacks of rank 16 x 4 experts, the paper's shape: random ones, as `decode` and `http_load` have them."""
DEMO = "demo"
"""Those of the demo before commit 381721f, rank 2 x 4 experts, which `decode` and `prefill` were measured
with; today's, of rank 8 and one expert, are about as large."""
PROFILES = (R16, DEMO)

HOST, DISK, BUCKET = "host", "disk", "bucket"
SOURCES = (DISK, BUCKET)

BUCKET_TRIP_S = 0.05
BUCKET_BYTES_S = 100e6
KV_TOKENS = 131_072
"""`EngineConfig.kv_cache_tokens`, where memory has room for them."""
ASSUMED = {
    "seconds of a bucket's round trip": BUCKET_TRIP_S,
    "bytes per second from a bucket": BUCKET_BYTES_S,
}
"""Nobody measured these."""


@dataclass(frozen=True)
class Case:
    """A measured decode step: rows, stacks that some row applies, and the sum of all rows' stacks."""

    rows: int
    stacks: int
    pairs: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """A replica's constants, in seconds.

    Attributes:
        step, row, stack, pair: of a decode step: in itself, for each row, for each stack that some row
            applies, for each stack of each row.
        token, token_stack: of one prompt token: in itself, and for each stack that applies.
        loads: of one stack, by where it is.
        source: where a stack is that host memory does not have.
        while_loading: times as long as a step takes while a stack is loaded.
        stack_bytes: of one stack, as it is loaded.
        max_batch, max_prefill: as in `EngineConfig`.
        kv_tokens: tokens whose keys and values are kept for conversations that go on.
        files: constant -> what it comes from.
        off: by how much the decode steps that were fitted are missed, the worst first.
    """

    name: str
    step: float
    row: float
    stack: float
    pair: float
    token: float
    token_stack: float
    loads: Mapping[str, float]
    source: str
    while_loading: float
    stack_bytes: int
    max_batch: int = EngineConfig.max_batch_size
    max_prefill: int = EngineConfig.max_prefill_tokens
    kv_tokens: int = KV_TOKENS
    files: Mapping[str, str] = field(default_factory=dict)
    off: Sequence[float] = ()

    def decode(self, rows: int, stacks: int, pairs: int) -> float:
        """Seconds of a step."""
        return self.step + self.row * rows + self.stack * stacks + self.pair * pairs

    def prefill(self, tokens: int, stacks: int) -> float:
        """Seconds that prompt tokens of one composition add to a step."""
        return tokens * (self.token + self.token_stack * stacks)

    @property
    def host_room(self) -> int:
        """Stacks that host memory keeps by default."""
        return EngineConfig.host_stack_bytes // self.stack_bytes


def load_profile(name: str, source: str = DISK, directory: Path = RESULTS) -> Profile:
    """Raises ConfigError: it is unknown, or its results are not there."""
    if name not in PROFILES or source not in SOURCES:
        raise ConfigError(
            f"{name!r} with stacks from {source!r} is no profile; they are {', '.join(PROFILES)}, "
            f"with stacks from {' or '.join(SOURCES)}"
        )
    results = _Results(directory)
    (step, row, stack, pair), off = fit(results.steps(name))
    token, token_stack = results.prompt(name)
    nbytes, loads = results.loads(name)
    return Profile(
        name, step, row, stack, pair, token, token_stack, loads, source, results.while_loading(), nbytes,
        files=results.read, off=off,
    )  # fmt: skip


def fit(cases: Sequence[Case]) -> tuple[tuple[float, float, float, float], list[float]]:
    """step, row, stack and pair that miss the cases by the smallest squares of relative errors.

    Returns:
        them, and the relative errors, the largest first.
    """
    seconds = np.array([case.seconds for case in cases])
    terms = np.array([[1, case.rows, case.stacks, case.pairs] for case in cases], np.float64)
    found = np.linalg.lstsq(terms / seconds[:, None], np.ones(len(cases)), rcond=None)[0]
    off = sorted((float(one) for one in terms @ found / seconds - 1), key=abs, reverse=True)
    step, row, stack, pair = (float(one) for one in found)
    return (step, row, stack, pair), off


class _Results:
    """The committed results of one host, and what was taken from which."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.read: dict[str, str] = {}

    def _document(self, benchmark: str, what: str) -> Any:
        path = self._directory / f"{benchmark}-{MEASURED}.json"
        if not path.is_file():
            raise ConfigError(f"{path.name} is not there; run python -m benchmarks.{benchmark} first")
        self.read[what] = path.name
        return json.loads(path.read_text(encoding="utf-8"))

    def steps(self, name: str) -> list[Case]:
        mixes = {
            "engine: base only": (0, 0),
            "engine: 4 of 10 r16, adjacent": (4, 4),
            "engine: 4 of 10 r16, spread out": (4, 4),
            "engine: 4 of 10 r16, stacks per row": (10, 4),
        }
        if name == DEMO:
            mixes = {"engine: base only": (0, 0), "engine: trained registry, all active": (5, 5)}
        found = []
        for case in self._document("decode", "decode step")["cases"]:
            rows = case["batch_size"]
            for mix, (stacks, each) in mixes.items():
                if mix in case["contestants"]:
                    rate = case["contestants"][mix]["tokens_per_second"]["median"]
                    found.append(Case(rows, stacks, rows * each, rows / rate))
        return found

    def prompt(self, name: str) -> tuple[float, float]:
        """Seconds of a prompt token in itself, and of each stack for it; prompts of 512 tokens."""
        mix, stacks = ("trained registry, all active", 5) if name == DEMO else ("4 of 10 r16", 4)
        rates = {
            case["mix"]: case["tokens_per_second"]["median"]
            for case in self._document("prefill", "prompts")["speed"]
            if case["prompt_tokens"] == 512
        }
        token = 1 / rates["base only"]
        token_stack = (1 / rates[mix] - token) / stacks
        return token, token_stack

    def loads(self, name: str) -> tuple[int, dict[str, float]]:
        """Bytes of a stack, and seconds by where it is.

        `residency` timed stacks of rank 2 x 4 experts, about as large as the demo's; r16 ones take as many
        times longer as they are larger, which is an extrapolation.
        """
        document = self._document("residency", "loads, by bytes")
        there = document["contestants"]["budget, the rest in host memory"]["load_ms"]
        each = document["device_stack_bytes"] / document["settings"]["budget"]
        nbytes = each if name == DEMO else self._document("hot_load", "bytes of a stack")["stack_bytes"]
        scale = nbytes / each
        disk = there["disk"]["median"] / 1000 * scale
        host = there["host"]["median"] / 1000 * scale
        return int(nbytes), {HOST: host, DISK: disk, BUCKET: disk + BUCKET_TRIP_S + nbytes / BUCKET_BYTES_S}

    def while_loading(self) -> float:
        document = self._document("hot_load", "steps while a stack is loaded")
        during, before = (document[f"gap_{when}_ms_median"]["median"] for when in ("during", "before"))
        return float(during / before)
