"""What `--deterministic` costs: decode speed with and without it, interleaved.

python -m benchmarks.deterministic
"""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, write_results
from benchmarks.instruments.timing import interleave, say
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import engine_batch
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.stacks.registry import Registry

NAME = "deterministic"
MAX_BATCH = 16


def main(
    batch_sizes: Annotated[str, typer.Option(help="Rows that decode, of the 16 there is room for.")] = "1,16",
    rounds: options.Rounds = 5,
    tokens: options.RunTokens = 24,
    prompt_tokens: options.PromptTokens = 32,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    registry: options.Trained = options.DEMO_REGISTRY,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Decode speed of the registry's domains, all active, with fixed step shapes and without.

    A quick look: python -m benchmarks.deterministic --rounds 1 --tokens 8
    """
    facts = machine()
    engines = {
        name: StepEngine(
            options.load(base, quantization, device),
            Registry(registry),
            EngineConfig(max_batch_size=MAX_BATCH, prefix_caching=False, deterministic=fixed),
        )
        for name, fixed in (("as usual", False), ("deterministic", True))
    }
    usual = engines["as usual"]
    facts["backend"] = usual.backend.name
    cases, rows = [], []
    for batch in options.positive_list(batch_sizes, "batch sizes such as 1,16"):
        say(f"batch of {batch}:")
        prompts = traffic.random_prompts(usual.base.vocab_size, prompt_tokens, batch, seed)
        weights = [dict.fromkeys(usual.stacks.serving, 1.0)] * batch
        runs = interleave(
            {name: engine_batch(engine, prompts, weights) for name, engine in engines.items()}, rounds, tokens
        )
        rates = {name: [run.rate for run in done] for name, done in runs.items()}
        ratio = Spread.ratio(rates["deterministic"], rates["as usual"])
        found = {name: Spread.of(values) for name, values in rates.items()}
        cases.append({"batch_size": batch, "tokens_per_second": found, "ratio": ratio})
        rows.append([batch, found["as usual"], found["deterministic"], ratio])
    chosen = options.asked(base, quantization, device, rounds=rounds, tokens=tokens, seed=seed)
    table = markdown_table(["rows", "as usual, tok/s", "deterministic, tok/s", "ratio"], rows)
    write_results(NAME, {"machine": facts, "settings": chosen, "cases": cases}, table, output)


app = options.application(main)

if __name__ == "__main__":
    app()
