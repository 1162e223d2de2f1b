"""Decode speed by batch size: the engine, its peers, what memory allows, and the targets, in one run.

    python -m benchmarks.decode --batch-sizes 1,16 --rounds 5

Greedy, a fixed number of tokens, random prompt ids of one length. See benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import options, peers, traffic
from benchmarks.engine_batch import engine_batch
from benchmarks.registries import Served, served
from benchmarks.results import RESULTS, Spread, machine, markdown_table, write_results
from benchmarks.roofline import StepBytes, base_bytes, read_bandwidth, step_bytes
from benchmarks.shuttle_baseline import ShuttleModel
from benchmarks.timing import Contestant, Run, common_prefix, interleave, say
from brainstacks.base_model import BaseModel, identify_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import BrainstacksError

NAME = "decode"

BASE_ONLY = "engine: base only"
TRAINED = "engine: trained registry, all active"
ADJACENT = "engine: 4 of 10 r16, adjacent"
APART = "engine: 4 of 10 r16, spread out"
REWEIGHTED = "engine: 4 of 10 r16, weights per row"
DISTINCT = "engine: 4 of 10 r16, stacks per row"
GENERATE = "transformers generate, base only"
PEFT_ONE = "PEFT: one LoRA r64"
PEFT_FOUR = "PEFT: four LoRAs r64, summed"
PEFT_MIXED = "PEFT: four LoRAs r64, one per row"
SHUTTLE = "published scheme: 4 of 10 r16"
SHUTTLE_NO_COPIES = "published scheme, without copies"
LLAMA_CPP = "llama.cpp, base only"


@dataclass(frozen=True)
class Comparison:
    """`ours` against `theirs`; `least` is the target at the batch sizes that have one."""

    ours: str
    theirs: str
    least: Mapping[int, float]


COMPARISONS = (
    Comparison(BASE_ONLY, GENERATE, {1: 1.15, 16: 1.5}),
    Comparison(TRAINED, BASE_ONLY, {1: 0.75, 16: 0.75}),
    Comparison(ADJACENT, BASE_ONLY, {1: 0.50, 16: 0.60}),
    Comparison(APART, BASE_ONLY, {1: 0.50, 16: 0.60}),
    Comparison(ADJACENT, PEFT_ONE, {1: 0.90, 16: 1.0}),
    Comparison(APART, PEFT_ONE, {1: 0.90, 16: 1.0}),
    Comparison(ADJACENT, PEFT_FOUR, {1: 1.8, 16: 1.8}),
    Comparison(APART, PEFT_FOUR, {1: 1.8, 16: 1.8}),
    Comparison(ADJACENT, SHUTTLE, {1: 10.0, 16: 80.0}),
    Comparison(APART, SHUTTLE, {1: 10.0, 16: 80.0}),
    Comparison(REWEIGHTED, ADJACENT, {16: 0.90}),
    Comparison(DISTINCT, ADJACENT, {16: 0.90}),
    Comparison(DISTINCT, PEFT_MIXED, {}),
    Comparison(BASE_ONLY, LLAMA_CPP, {}),
)


@dataclass(frozen=True)
class Case:
    """All contestants at one batch size.

    Attributes:
        bytes: what a step of the engine reads, per contestant of the engine.
        bandwidth: bytes per second, measured before each round.
    """

    batch: int
    runs: Mapping[str, list[Run]]
    bytes: Mapping[str, StepBytes]
    bandwidth: Spread

    def rates(self, name: str) -> Spread:
        return Spread.of(run.rate for run in self.runs[name])

    def ratio(self, comparison: Comparison) -> Spread:
        ours, theirs = self.runs[comparison.ours], self.runs[comparison.theirs]
        return Spread.ratio((run.rate for run in ours), (run.rate for run in theirs))

    def comparisons(self) -> list[Comparison]:
        return [c for c in COMPARISONS if c.ours in self.runs and c.theirs in self.runs]

    def to_document(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch,
            "read_bandwidth": self.bandwidth,
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
                    "ours": c.ours,
                    "theirs": c.theirs,
                    "ratio": self.ratio(c),
                    "target": c.least.get(self.batch),
                    "same_tokens": common_prefix(self.runs[c.ours][0], self.runs[c.theirs][0]),
                }
                for c in self.comparisons()
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
        for comparison in self.comparisons():
            ratio, least = self.ratio(comparison), comparison.least.get(self.batch)
            verdict = "" if least is None else "met" if ratio.median >= least else "not met"
            target = "" if least is None else f">= {least:g}"
            rows.append([comparison.ours, comparison.theirs, ratio, target, verdict])
        return markdown_table(["", "against", "times as fast", "target", ""], rows)

    def tables(self) -> str:
        return (
            f"## Batch of {self.batch}\n\n{self.speed_table()}\n\n{self.target_table()}\n\n"
            f"Memory is read at {self.bandwidth.median / 1e9:.1f} GB/s."
        )


class Bench:
    """The engine, its peers, and the work that all of them do.

    Args:
        load: gives a fresh copy of the base at each call.
        gguf: the base's file for llama.cpp, if there is one.
        batches: batch sizes.
    """

    def __init__(
        self,
        load: Callable[[], BaseModel],
        stacks: Served,
        gguf: Path | None,
        batches: Sequence[int],
        prompt_tokens: int,
        seed: int,
    ) -> None:
        self.base = load()
        self._stacks = stacks
        self._gguf = gguf
        self._seed = seed
        self._prompts = [
            traffic.random_prompt(self.base.vocab_size, prompt_tokens, seed + row)
            for row in range(max(batches))
        ]
        config = EngineConfig(
            max_batch_size=max(batches), max_router_batch=max(batches), prefix_caching=False
        )
        self._engine = StepEngine(self.base, stacks.registry, config)
        if self._engine.residency.problems:
            raise BrainstacksError("a stack cannot be served: " + "; ".join(self._engine.residency.problems))
        self._plain = load()
        self._shuttle = ShuttleModel(load(), stacks.registry)
        self._peft = peers.PeftPeer(load()) if peers.installed("peft") else None
        if self._peft is None:
            say("PEFT is not installed (pip install peft): its contestants are left out")
        if gguf is not None and not peers.installed("llama_cpp"):
            say("llama-cpp-python is not installed: its contestant is left out")

    def compositions(self, batch: int) -> dict[str, list[traffic.Composition]]:
        """Of the engine's contestants: one per row."""
        random = self._stacks.random
        four = traffic.adjacent(random)
        found: dict[str, list[traffic.Composition]] = {
            BASE_ONLY: [{}] * batch,
            ADJACENT: [four] * batch,
            APART: [traffic.apart(random)] * batch,
        }
        if self._stacks.trained:
            found[TRAINED] = [dict.fromkeys(self._stacks.trained, 1.0)] * batch
        if batch > 1:
            found[REWEIGHTED] = traffic.reweighted(four, batch, self._seed)
            found[DISTINCT] = traffic.distinct(random, batch, self._seed)
        return found

    def peers(self, batch: int) -> dict[str, Contestant]:
        prompts = self._prompts[:batch]
        four = traffic.adjacent(self._stacks.random)
        found = {GENERATE: peers.transformers_batch(self._plain.model, prompts, self._plain.device)}
        if self._peft is not None:
            found[PEFT_ONE] = self._peft.summed(prompts, 1)
            found[PEFT_FOUR] = self._peft.summed(prompts, 4)
            if batch > 1:
                found[PEFT_MIXED] = self._peft.mixed(prompts)
        if batch == 1 and self._gguf is not None and peers.installed("llama_cpp"):
            found[LLAMA_CPP] = peers.llama_cpp_stream(self._gguf, prompts[0])
        found[SHUTTLE] = peers.shuttle_stream(self._shuttle, prompts[0], four)
        if self._plain.device.type == "cpu":
            found[SHUTTLE_NO_COPIES] = peers.shuttle_stream(
                self._shuttle, prompts[0], four, always_copy=False
            )
        return found

    def compare(self, batch: int, rounds: int, tokens: int) -> Case:
        """Everything at one batch size, interleaved."""
        say(f"batch of {batch}:")
        rows = self.compositions(batch)
        ours = {
            name: engine_batch(self._engine, self._prompts[:batch], weights) for name, weights in rows.items()
        }
        bandwidth: list[float] = []
        runs = interleave(
            {**ours, **self.peers(batch)},
            rounds,
            tokens,
            before_round=lambda: bandwidth.append(read_bandwidth(self.base.device)),
        )
        metadata = self._stacks.metadata
        weights = base_bytes(self.base)  # after the first forward, which repacks them on some CPUs
        read = {
            name: step_bytes(weights, weighted, metadata, self.base.dtype.itemsize)
            for name, weighted in rows.items()
        }
        return Case(batch, runs, read, Spread.of(bandwidth))


def main(
    batch_sizes: Annotated[
        str, typer.Option(help="Separated by commas; targets are set at 1 and 16.")
    ] = "1,16",
    rounds: options.Rounds = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate per row in each run.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the random prompts.")] = 32,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = "nf4",
    device: options.Device = "auto",
    registry: options.Trained = options.DEMO_REGISTRY,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Decode speed at each batch size, against every peer that is installed.

    All contestants run in turn (A B C, A B C, ...). The first table gives tokens per second, and beside the
    engine's what its bytes per step and this machine's memory allow; the second one ratios, taken round by
    round, and the targets. Optional peers: pip install peft llama-cpp-python.

    A quick look: python -m benchmarks.decode --rounds 1 --tokens 8 --batch-sizes 4
    """
    batches = options.positive_list(batch_sizes, "batch sizes such as 1,4,16")
    facts = machine()
    with served(identify_base(base), trained=registry, seed=seed) as stacks:
        bench = Bench(
            lambda: options.load(base, quantization, device),
            stacks,
            peers.gguf_of(base),
            batches,
            prompt_tokens,
            seed,
        )
        cases = [bench.compare(batch, rounds, tokens) for batch in batches]
    chosen = options.asked(
        base, quantization, device, rounds=rounds, tokens=tokens, prompt_tokens=prompt_tokens, seed=seed
    )
    document = {"machine": facts, "settings": chosen, "cases": [case.to_document() for case in cases]}
    note = f"Median (min..max) of {rounds} rounds; ratios are taken round by round.\n\n"
    write_results(NAME, document, note + "\n\n".join(case.tables() for case in cases), output)


app = options.application(main)

if __name__ == "__main__":
    app()
