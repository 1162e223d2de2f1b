"""Decode speed by batch size: the engine, its peers, what memory allows, and the targets, in one run.

    python -m benchmarks.decode --batch-sizes 1,16 --rounds 5

Greedy, a fixed number of tokens, random prompt ids of one length. See benchmarks/README.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.instruments import options
from benchmarks.instruments.decode_case import Case
from benchmarks.instruments.registries import Served, served
from benchmarks.instruments.results import RESULTS, Spread, machine, rounds_note, write_results
from benchmarks.instruments.roofline import base_bytes, read_bandwidth, stack_bytes, step_bytes
from benchmarks.instruments.timing import interleave, say
from benchmarks.peers.available import llama_cpp_file
from benchmarks.peers.contestants import PEERS, Peers
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import compositions, engine_batch
from brainstacks.base_model import BaseModel, identify_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import BrainstacksError

NAME = "decode"


class Bench:
    """The engine, its peers, and the work that all of them do.

    Args:
        load: gives a fresh copy of the base at each call.
        base: its name.
        chosen: the peers, of `PEERS`.
        batches: batch sizes.
        scratch: a directory that outlives this.
    """

    def __init__(
        self,
        load: Callable[[], BaseModel],
        base: str,
        stacks: Served,
        chosen: frozenset[str],
        batches: Sequence[int],
        prompt_tokens: int,
        seed: int,
        scratch: Path,
    ) -> None:
        self.base = load()
        self._stacks = stacks
        self._seed = seed
        self._prompts = traffic.random_prompts(self.base.vocab_size, prompt_tokens, max(batches), seed)
        config = EngineConfig(
            max_batch_size=max(batches), max_router_batch=max(batches), prefix_caching=False
        )
        self.engine = StepEngine(self.base, stacks.registry, config)
        if self.engine.serving.stack_problems:
            raise BrainstacksError(
                "a stack cannot be served: " + "; ".join(self.engine.serving.stack_problems)
            )
        self._read = {name: stack_bytes(self.engine, path) for name, path in stacks.files.items()}
        gguf = llama_cpp_file(base, self.base.device) if "llama.cpp" in chosen else None
        self._peers = Peers(
            load, self.base, chosen, stacks.registry, traffic.adjacent(stacks.random), gguf, scratch
        )

    def compare(self, batch: int, rounds: int, tokens: int) -> Case:
        """Everything at one batch size, interleaved."""
        say(f"batch of {batch}:")
        rows = compositions(self._stacks, batch, self._seed)
        prompts = self._prompts[:batch]
        ours = {name: engine_batch(self.engine, prompts, weights) for name, weights in rows.items()}
        bandwidth: list[float] = []
        with self._peers.llama_cpp(prompts, tokens) as (llama_cpp, system):
            runs = interleave(
                {**ours, **self._peers.contestants(prompts), **llama_cpp},
                rounds,
                tokens,
                before_round=lambda: bandwidth.append(read_bandwidth(self.base.device)),
            )
        weights = base_bytes(self.engine)
        read = {name: step_bytes(weights, weighted, self._read) for name, weighted in rows.items()}
        return Case(batch, runs, read, Spread.of(bandwidth), system)


def main(
    batch_sizes: Annotated[
        str, typer.Option(help="Separated by commas; targets are set at 1 and 16.")
    ] = "1,16",
    rounds: options.Rounds = 5,
    tokens: options.RunTokens = 32,
    prompt_tokens: options.PromptTokens = 32,
    against: Annotated[
        str, typer.Option("--peers", help="Separated by commas; none in an empty text.")
    ] = ",".join(PEERS),
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    registry: options.Trained = options.DEMO_REGISTRY,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Decode speed at each batch size, against the peers that are asked for and installed.

    All contestants run in turn (A B C, A B C, ...). The first table gives tokens per second, and beside the
    engine's what its bytes per step and this machine's memory allow; the second one ratios, taken round by
    round, and the targets.

    A quick look: python -m benchmarks.decode --rounds 1 --tokens 8 --batch-sizes 4
    """
    batches = options.positive_list(batch_sizes, "batch sizes such as 1,4,16")
    chosen_peers = options.some_of(against, PEERS)
    facts = machine()
    with (
        served(identify_base(base), trained=registry, seed=seed) as stacks,
        tempfile.TemporaryDirectory() as scratch,
    ):
        bench = Bench(
            lambda: options.load(base, quantization, device),
            base,
            stacks,
            chosen_peers,
            batches,
            prompt_tokens,
            seed,
            Path(scratch),
        )
        facts["backend"] = bench.engine.backend.name
        cases = [bench.compare(batch, rounds, tokens) for batch in batches]
    chosen = options.asked(
        base,
        quantization,
        device,
        rounds=rounds,
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        peers=sorted(chosen_peers),
        seed=seed,
    )
    document = {"machine": facts, "settings": chosen, "cases": [case.to_document() for case in cases]}
    write_results(NAME, document, rounds_note(rounds) + "\n\n".join(case.tables() for case in cases), output)


app = options.application(main)

if __name__ == "__main__":
    app()
