"""Decode speed at one batch size: who took part, who is compared with whom, and the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.instruments.results import Spread, markdown_table, met
from benchmarks.instruments.roofline import StepBytes
from benchmarks.instruments.timing import Run, common_prefix

BASE_ONLY = "engine: base only"
TRAINED = "engine: trained registry, all active"
ADJACENT = "engine: 4 of 10 r16, adjacent"
APART = "engine: 4 of 10 r16, spread out"
REWEIGHTED = "engine: 4 of 10 r16, weights per row"
DISTINCT = "engine: 4 of 10 r16, stacks per row"
GENERATE_FLOAT32 = "transformers generate, same values in float32"
GENERATE_BFLOAT16 = "transformers generate, same values in bfloat16"
PEFT_ONE = "PEFT: one LoRA r64"
PEFT_FOUR = "PEFT: four LoRAs r64, summed"
PEFT_MIXED = "PEFT: four LoRAs r64, one per row"
SHUTTLE = "published scheme: 4 of 10 r16"
SHUTTLE_NO_COPIES = "published scheme, without copies"
LLAMA_CPP = "llama.cpp, base only"
LLAMA_CPP_FOUR = "llama.cpp, four LoRAs r64, all rows alike"


@dataclass(frozen=True)
class Comparison:
    """`ours` against the fastest of `theirs`; `least` is the target at the batch sizes that have one."""

    ours: str
    theirs: tuple[str, ...]
    least: Mapping[int, float]


PLAIN = (GENERATE_FLOAT32, GENERATE_BFLOAT16)
COMPARISONS = (
    Comparison(BASE_ONLY, (LLAMA_CPP,), {1: 0.8, 16: 1.5}),
    Comparison(ADJACENT, (LLAMA_CPP_FOUR,), {1: 1.2}),
    Comparison(APART, (LLAMA_CPP_FOUR,), {1: 1.2}),
    Comparison(TRAINED, (BASE_ONLY,), {1: 0.75, 16: 0.75}),
    Comparison(ADJACENT, (BASE_ONLY,), {1: 0.55, 16: 0.60}),
    Comparison(APART, (BASE_ONLY,), {1: 0.55, 16: 0.60}),
    Comparison(DISTINCT, (ADJACENT,), {16: 0.90}),
    Comparison(REWEIGHTED, (ADJACENT,), {}),
    Comparison(BASE_ONLY, PLAIN, {1: 1.5, 16: 1.5}),
    Comparison(ADJACENT, (PEFT_ONE,), {}),
    Comparison(ADJACENT, (PEFT_FOUR,), {}),
    Comparison(DISTINCT, (PEFT_MIXED,), {}),
    Comparison(ADJACENT, (SHUTTLE,), {}),
)


@dataclass(frozen=True)
class Case:
    """All contestants at one batch size.

    Attributes:
        bytes: what a step of the engine reads, per contestant of the engine.
        bandwidth: bytes per second, measured before each round.
        llama_cpp: what it says that it was compiled for; empty where it did not run.
    """

    batch: int
    runs: Mapping[str, list[Run]]
    bytes: Mapping[str, StepBytes]
    bandwidth: Spread
    llama_cpp: str = ""

    def rates(self, name: str) -> Spread:
        return Spread.of(run.rate for run in self.runs[name])

    def ratio(self, ours: str, theirs: str) -> Spread:
        return Spread.ratio(*((run.rate for run in self.runs[name]) for name in (ours, theirs)))

    def compared(self) -> list[tuple[str, str, float | None]]:
        """Ours, the fastest of theirs by its median, and the target, of all who ran."""
        found = []
        for comparison in COMPARISONS:
            theirs = [name for name in comparison.theirs if name in self.runs]
            if theirs and comparison.ours in self.runs:
                fastest = max(theirs, key=lambda name: self.rates(name).median)
                found.append((comparison.ours, fastest, comparison.least.get(self.batch)))
        return found

    def to_document(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch,
            "read_bandwidth": self.bandwidth,
            "llama_cpp": self.llama_cpp,
            "contestants": {
                name: {
                    "tokens_per_second": self.rates(name),
                    "first_token_ms": Spread.of(1000 * run.first_token_s for run in runs),
                    **self._roofline(name),
                }
                for name, runs in self.runs.items()
            },
            "comparisons": [
                {
                    "ours": ours,
                    "theirs": theirs,
                    "ratio": self.ratio(ours, theirs),
                    "target": target,
                    "same_tokens": common_prefix(self.runs[ours][0], self.runs[theirs][0]),
                }
                for ours, theirs, target in self.compared()
            ],
        }

    def _roofline(self, name: str) -> dict[str, Any]:
        if name not in self.bytes:
            return {}
        step = self.bytes[name]
        bounds = step.bounds(self.batch, self.bandwidth.median)
        return {
            "bytes_per_step": {"all_experts": step.all_experts, "chosen_experts": step.chosen_experts},
            "tokens_per_second_bound": {"all_experts": bounds[0], "chosen_experts": bounds[1]},
        }

    def speed_table(self) -> str:
        header = [
            "contestant",
            "decode, tok/s",
            "MB per step: all / chosen experts",
            "tok/s that these allow",
        ]
        rows: list[list[object]] = []
        for name in self.runs:
            row: list[object] = [name, self.rates(name), "", ""]
            if name in self.bytes:
                step = self.bytes[name]
                bounds = step.bounds(self.batch, self.bandwidth.median)
                row[2:] = [
                    f"{step.all_experts / 1e6:.0f} / {step.chosen_experts / 1e6:.0f}",
                    f"{bounds[0]:.0f} / {bounds[1]:.0f}",
                ]
            rows.append(row)
        return markdown_table(header, rows)

    def target_table(self) -> str:
        rows: list[list[object]] = []
        for ours, theirs, least in self.compared():
            ratio = self.ratio(ours, theirs)
            verdict = "" if least is None else met(ratio.median >= least)
            target = "" if least is None else f">= {least:g}"
            rows.append([ours, theirs, ratio, target, verdict])
        return markdown_table(["", "against", "times as fast", "target", ""], rows)

    def tables(self) -> str:
        llama_cpp = f" llama.cpp says of itself: {self.llama_cpp}" if self.llama_cpp else ""
        return (
            f"## Batch of {self.batch}\n\n{self.speed_table()}\n\n{self.target_table()}\n\n"
            f"Memory is read at {self.bandwidth.median / 1e9:.1f} GB/s.{llama_cpp}"
        )
