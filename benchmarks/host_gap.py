"""How long the host lets a GPU wait between two decode steps, and with what.

    python -m benchmarks.host_gap

The engine makes the cuda backend's steps for a device that computes nothing: what it is given is there at
once, so that the host's own work is left. Noted is the time from when a step's tokens have come until the
operations of the next would be enqueued; a GPU has nothing to do meanwhile. The copy to it is one within the
host's memory here, and what enqueueing takes is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from torch import Tensor

from benchmarks.instruments import options
from benchmarks.instruments.decode_case import BASE_ONLY, DISTINCT
from benchmarks.instruments.registries import served
from benchmarks.instruments.results import RESULTS, machine, markdown_table, percentile, write_results
from benchmarks.instruments.timing import say, timed
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import compositions, engine_batch
from brainstacks.base_model import BaseModel, identify_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.runner import backend
from brainstacks.engine.runner.cuda_backend import CudaBackend
from brainstacks.engine.runner.cuda_step import CudaStep
from brainstacks.engine.runner.flight import Flight
from brainstacks.engine.runner.kv_cache import NewCache, PagedCache
from brainstacks.engine.sampling.transfers import HostCopy
from brainstacks.engine.scheduler import Scheduler

NAME = "host_gap"
WARM_UP_TOKENS = 8
VOCAB = 8
"""Of the logits that such a device gives: what sampling takes is not looked at."""

LAST = "ids and copy"
ENDS: dict[str, tuple[Any, str, bool]] = {
    "tokens as numbers": (Flight, "land", True),
    "to their rows": (Scheduler, "schedule", False),
    "who runs": (Scheduler, "schedule", True),
    "what they compute": (CudaStep, "send", False),
}
"""Part of the wait -> the call that ends it: its owner, its name, and whether its return does. The `LAST`
ends where operations would be enqueued."""
PARTS = (*ENDS, LAST)


class Gaps:
    """Of the steps within `noting`.

    Attributes:
        found: of each step, part -> milliseconds.
    """

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []
        self._since = 0.0

    def compute(self, step: CudaStep) -> Tensor:
        """What the device gives."""
        self._end(LAST)
        return torch.zeros(step.room.rows if step.room.decode else step.room.wanted, VOCAB)

    @contextmanager
    def noting(self) -> Iterator[None]:
        self.found.clear()
        with ExitStack() as watched:
            watched.enter_context(_watched(HostCopy, "wait", True, self._begin))
            for part, (owner, name, after) in ENDS.items():
                watched.enter_context(_watched(owner, name, after, partial(self._end, part)))
            yield

    def _begin(self) -> None:
        self.found.append({})
        self._since = perf_counter()

    def _end(self, part: str) -> None:
        if self.found:
            now = perf_counter()
            self.found[-1][part] = 1000 * (now - self._since)
            self._since = now


def _watched(owner: Any, name: str, after: bool, tell: Callable[[], None]) -> Any:
    call = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if not after:
            tell()
        found = call(*args, **kwargs)
        if after:
            tell()
        return found

    return mock.patch.object(owner, name, watched)


@contextmanager
def on_nothing(base: BaseModel, gaps: Gaps, stacks: Any, config: EngineConfig) -> Iterator[StepEngine]:
    """An engine whose device computes nothing."""

    def made(base: BaseModel, new_cache: NewCache, config: EngineConfig, reason: str) -> CudaBackend:
        return CudaBackend(base, new_cache(PagedCache), reason, config)

    with (
        mock.patch.dict(backend.COMPILED, cuda=made),
        mock.patch.object(CudaStep, "compute", lambda step: gaps.compute(step)),
    ):
        yield StepEngine(base, stacks, config)


def measure(
    engine: StepEngine,
    gaps: Gaps,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[traffic.Composition],
    tokens: int,
) -> dict[str, Any]:
    """Milliseconds of the steps in which all rows decode: medians by part, and of the whole."""
    timed(engine_batch(engine, prompts, rows), WARM_UP_TOKENS)
    with gaps.noting():
        timed(engine_batch(engine, prompts, rows), tokens)
    steps = [step for step in gaps.found if LAST in step][1:]  # the first decodes what was a prompt
    whole = [sum(step.values()) for step in steps]
    return {
        "steps": len(steps),
        "parts": {part: percentile((step[part] for step in steps), 50) for part in PARTS},
        "whole": {f"p{percent}": percentile(whole, percent) for percent in (10, 50, 90)},
    }


def main(
    batch_sizes: Annotated[str, typer.Option(help="Separated by commas.")] = "1,8,64",
    tokens: Annotated[int, typer.Option(min=WARM_UP_TOKENS, help="Tokens to generate per row.")] = 200,
    prompt_tokens: options.PromptTokens = 1024,
    base: options.Base = options.DEFAULT_BASE,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Milliseconds between a decode step's tokens and the next step, of the base and of stacks per row.

    A quick look: python -m benchmarks.host_gap --batch-sizes 64 --tokens 50
    """
    batches = options.positive_list(batch_sizes, "batch sizes such as 1,8,64")
    torch.set_num_threads(1)  # the copy to a GPU takes none of the host's
    facts, gaps, most = machine(), Gaps(), max(batches)
    config = EngineConfig(
        max_batch_size=most,
        backend="cuda",
        prefix_caching=False,
        kv_cache_tokens=2 * most * (prompt_tokens + tokens),
    )
    cases = []
    with (
        served(identify_base(base), seed=seed) as stacks,
        on_nothing(options.load(base, "none", "cpu"), gaps, stacks.registry, config) as engine,
    ):
        facts["backend"] = f"{engine.backend.name}, which computes nothing"
        prompts = traffic.random_prompts(engine.base.vocab_size, prompt_tokens, most, seed)
        for batch in batches:
            of_rows = compositions(stacks, batch, seed)
            for name in (BASE_ONLY, DISTINCT):
                if name in of_rows:
                    found = measure(engine, gaps, prompts[:batch], of_rows[name], tokens)
                    say(f"{batch} rows, {name}: {found['whole']['p50']:.3f} ms")
                    cases.append({"batch_size": batch, "contestant": name, **found})
    asked = options.asked(base, "none", "cpu", tokens=tokens, prompt_tokens=prompt_tokens, seed=seed)
    text = (
        "Milliseconds from a decode step's tokens until the next step is enqueued, on a device that computes "
        "nothing: medians of all steps.\n\n"
    )
    header = ("rows", "stacks", *PARTS, "in all", "p10..p90")
    lines = [
        (
            case["batch_size"], case["contestant"].removeprefix("engine: "),
            *(f"{case['parts'][part]:.3f}" for part in PARTS),
            f"{case['whole']['p50']:.3f}", f"{case['whole']['p10']:.3f}..{case['whole']['p90']:.3f}",
        )
        for case in cases
    ]  # fmt: skip
    document = {"machine": facts, "settings": asked, "cases": cases}
    write_results(NAME, document, text + markdown_table(header, lines), output)


app = options.application(main)

if __name__ == "__main__":
    app()
