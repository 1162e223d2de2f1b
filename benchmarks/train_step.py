"""One optimiser step: a MoE-LoRA stack on 0, 1, 2 and 4 frozen ones against PEFT's LoRA of equal parameters.

    python -m benchmarks.train_step --rounds 7

Same base, tokens, objective and optimiser for all: only the adapter differs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.experiments.parameters import lora_of, parameters
from benchmarks.instruments import options
from benchmarks.instruments.optimizer_step import OptimizerSteps, Step
from benchmarks.instruments.results import RESULTS, machine, write_results
from benchmarks.instruments.step_times import AUTOCAST, FROZEN, PEFT, StepTimes, ours_with
from benchmarks.instruments.timing import Progress
from benchmarks.peers.peft_loras import with_loras
from benchmarks.serving.traffic import random_prompts
from brainstacks.base_model import BaseModel
from training.recipe.settings import ComputeMode, StackRecipe
from training.rounds.allocator import keep_freed_memory
from training.rounds.compute import choose
from training.rounds.objective import response_nll

NAME = "train_step"

SHAPES = (
    StackRecipe(rank=2, experts=4, top_k=2, dtype="float32"),
    StackRecipe(rank=16, experts=4, top_k=2, dtype="float32"),
)
"""The demo's and the paper's."""


class Bench:
    """Contestants that train on one batch.

    Args:
        load: gives a fresh copy of the base, open to gradients, at each call: PEFT wraps its modules.
    """

    def __init__(self, load: Callable[[], BaseModel], batch_size: int, tokens: int, seed: int) -> None:
        self._load = load
        self._base = load()
        rows = random_prompts(self._base.vocab_size, tokens, batch_size, seed)
        self._steps = OptimizerSteps(self._base, rows, seed)

    def compare(self, stack: StackRecipe, rounds: int) -> StepTimes:
        """Everything with one shape, interleaved; each contestant steps once before, uncounted."""
        identity = self._base.identity
        count = parameters(stack, identity.dims, identity.layers).total
        lora = lora_of(count, stack.alpha, identity.dims, identity.layers)
        peers, peer_count = self._peers(lora)
        steps = {**peers, **{ours_with(k): self._steps.on_frozen(stack, k) for k in FROZEN}}
        for step in steps.values():
            step()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        progress = Progress(rounds * len(steps))
        for number in range(rounds):
            for name, step in steps.items():
                seconds[name].append(self._steps.timed(step))
                progress.done(f"round {number + 1}, {name}: {seconds[name][-1]:.3f} s")
        return StepTimes(stack, seconds, {n: peer_count if n in peers else count for n in steps})

    def _peers(self, lora: StackRecipe) -> tuple[dict[str, Step], int]:
        """PEFT's rsLoRA as it comes, its adapters in float32, and computed in the base's dtype (autocast)."""
        base = self._load()
        adapter = with_loras(base, r=lora.rank, lora_alpha=lora.alpha, use_rslora=True)
        count = sum(p.numel() for p in adapter.parameters() if p.requires_grad)

        def step(context: Callable[[], AbstractContextManager[Any]]) -> Step:
            def loss() -> Tensor:
                with context():
                    return response_nll(base.model, self._steps.batch).mean()

            return self._steps.of(adapter, loss)

        def autocast() -> AbstractContextManager[Any]:
            return torch.autocast(base.device.type, torch.bfloat16)

        return {PEFT: step(nullcontext), AUTOCAST: step(autocast)}, count


def main(
    rounds: options.Rounds = 7,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="Of each row.")] = 256,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = "nf4",  # as those train who come from PEFT
    device: options.Device = "auto",
    compute: Annotated[ComputeMode, typer.Option(help="Of the base, as in a recipe.")] = "auto",
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Seconds of an optimiser step, against PEFT (pip install peft), at the demo's and the paper's shapes.

    All contestants step in turn (A B C, A B C, ...); ratios are taken round by round.

    A quick look: python -m benchmarks.train_step --rounds 1 --batch-size 2 --tokens 64
    """
    keep_freed_memory()
    facts = machine()

    def loaded() -> BaseModel:
        return options.load(base, quantization, device)

    computing = choose(loaded(), compute, backward=True)
    typer.echo(str(computing))

    def load() -> BaseModel:
        return computing.of(loaded())

    bench = Bench(load, batch_size, tokens, seed)
    cases = [bench.compare(stack, rounds) for stack in SHAPES]
    chosen = options.asked(
        base,
        quantization,
        device,
        rounds=rounds,
        batch_size=batch_size,
        tokens=tokens,
        compute=computing.dtype,
        seed=seed,
    )
    document = {"machine": facts, "settings": chosen, "cases": [case.to_document() for case in cases]}
    note = f"Median (min..max) of {rounds} rounds of one step of {batch_size} rows of {tokens} tokens.\n\n"
    write_results(NAME, document, note + "\n\n".join(case.tables() for case in cases), output)


app = options.application(main)

if __name__ == "__main__":
    app()
