"""Tokens per second of the cuda backend on a base of a real size, with random weights, in NF4.

    python -m benchmarks.gpu_decode --decoder Llama-3-8B

Decode at several batch sizes with the base alone, with one, four and all random stacks for all rows, and with
four others in each row; prefill at two lengths; how long a stack takes to the device; and where a decode
step's time goes, by kernel. Contestants run in turn. Needs a GPU; `--decoder tiny --device cpu` with
TRITON_INTERPRET=1 rehearses it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import typer

from benchmarks.instruments import options
from benchmarks.instruments.decoders import LLAMA_3_8B, NAMES
from benchmarks.instruments.random_base import random_base
from benchmarks.instruments.registries import served
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, write_results
from benchmarks.instruments.timing import Run, interleave, say
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import engine_batch
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.gpu_kernels.launch import INTERPRETED

NAME = "gpu_decode"
BASE = "base alone"
TOP = 15
"""Kernels that are listed."""


def cases(domains: Sequence[str], rows: int) -> dict[str, list[Mapping[str, float]]]:
    """Contestant -> the composition of each row."""
    alike = {
        BASE: {},
        "one stack": {domains[0]: 1.0},
        "four stacks": dict.fromkeys(domains[:4], 0.5),
        "all stacks": dict.fromkeys(domains, 0.3),
    }
    found: dict[str, list[Mapping[str, float]]] = {name: [weights] * rows for name, weights in alike.items()}
    return {**found, "four others a row": list(traffic.distinct(domains, rows, seed=0))}


def decode(
    engine: StepEngine, domains: Sequence[str], batch: int, rounds: int, tokens: int, prompt: int
) -> dict[str, Any]:
    """Tokens per second, and against the base's."""
    say(f"decode, {batch} rows")
    prompts = traffic.random_prompts(engine.base.vocab_size, prompt, batch, seed=0)
    contestants = {
        name: engine_batch(engine, prompts, weights) for name, weights in cases(domains, batch).items()
    }
    runs: Mapping[str, Sequence[Run]] = interleave(contestants, rounds, tokens)
    rates = {name: [run.rate for run in of] for name, of in runs.items()}
    return {
        "batch": batch,
        "tokens_per_s": {name: Spread.of(rate) for name, rate in rates.items()},
        "ratio_to_base": {name: Spread.ratio(rate, rates[BASE]) for name, rate in rates.items()},
    }


def prefill(engine: StepEngine, domains: Sequence[str], length: int, rounds: int) -> dict[str, Any]:
    """Prompt tokens per second of one row."""
    say(f"prefill, {length} tokens")
    (prompt,) = traffic.random_prompts(engine.base.vocab_size, length, 1, seed=1)
    contestants = {
        name: engine_batch(engine, [prompt], weights)
        for name, weights in cases(domains, 1).items()
        if name != "four others a row"
    }
    runs = interleave(contestants, rounds, 2)
    rates = {name: Spread.of([length / run.first_token_s for run in of]) for name, of in runs.items()}
    return {"length": length, "tokens_per_s": rates}


def load(engine: StepEngine) -> dict[str, Any]:
    """Seconds and GB/s of a stack from host memory to the device."""
    bank = engine.stacks.bank
    stack = bank.resident(bank.keys[0]).stack
    host = torch.empty(stack.nbytes, dtype=torch.uint8, pin_memory=bank.device.type == "cuda")
    there = torch.empty_like(host, device=bank.device)
    seconds = []
    for _ in range(5):
        _wait(bank.device)
        start = time.perf_counter()
        there.copy_(host, non_blocking=True)
        _wait(bank.device)
        seconds.append(time.perf_counter() - start)
    return {"bytes": stack.nbytes, "gb_per_s": Spread.of([stack.nbytes / s / 1e9 for s in seconds])}


def kernels(engine: StepEngine, domains: Sequence[str], batch: int, tokens: int) -> list[dict[str, Any]]:
    """The kernels that a decode step spends most time in, four stacks for all rows."""
    # CUPTI, taken down beside captured graphs, ends the process: PyTorch sets these for its own.
    os.environ.update(DISABLE_CUPTI_LAZY_REINIT="1", TEARDOWN_CUPTI="0")
    from torch.profiler import ProfilerActivity, profile

    prompts = traffic.random_prompts(engine.base.vocab_size, 16, batch, seed=0)
    contestant = engine_batch(engine, prompts, cases(domains, batch)["four stacks"])
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        contestant.generate(tokens, lambda fresh: None)
    found = [event for event in profiled.key_averages() if event.device_time_total > 0]
    found.sort(key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key, "calls": event.count, "ms": round(event.self_device_time_total / 1e3, 3)}
        for event in found[:TOP]
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tables(document: Mapping[str, Any]) -> str:
    """What is there so far."""
    rows = [
        (case["batch"], name, case["tokens_per_s"][name], case["ratio_to_base"][name])
        for case in document["decode"]
        for name in case["tokens_per_s"]
    ]
    parts = [markdown_table(("rows", "contestant", "tokens/s", "to the base"), rows)]
    read = [
        (case["length"], name, rate)
        for case in document["prefill"]
        for name, rate in case["tokens_per_s"].items()
    ]
    parts.append(markdown_table(("prompt", "contestant", "tokens/s"), read))
    if document["kernels"]:
        listed = [(one["kernel"], one["calls"], one["ms"]) for one in document["kernels"]]
        parts.append(markdown_table(("kernel", "calls", "ms"), listed))
    if document["load"]:
        parts.append(f"A stack to the device: {document['load']['gb_per_s']} GB/s")
    return "\n\n".join(parts)


def main(
    decoder: Annotated[str, typer.Option(help=f"One of {', '.join(NAMES)}.")] = LLAMA_3_8B,
    batches: Annotated[str, typer.Option(help="Separated by commas.")] = "1,8,32,64",
    lengths: Annotated[str, typer.Option(help="Of prompts, separated by commas.")] = "512,2048",
    stacks: Annotated[int, typer.Option(min=4, help="Random stacks.")] = 10,
    rank: Annotated[int, typer.Option(min=1, help="Of these.")] = 16,
    layers: Annotated[int, typer.Option(min=1, help="Of the base, at most.")] = 1024,
    rounds: options.Rounds = 3,
    tokens: options.RunTokens = 64,
    prompt_tokens: options.PromptTokens = 128,
    device: options.Device = "cuda",
    output: options.Output = RESULTS,
) -> None:
    """Decode, prefill and loads on a GPU; results are written again after each part."""
    if decoder not in NAMES:
        raise typer.BadParameter(f"{decoder}; sizes are known of {', '.join(NAMES)}")
    if not torch.cuda.is_available() and not (device == "cpu" and INTERPRETED):
        raise typer.BadParameter(
            "no CUDA device is there; a rehearsal is TRITON_INTERPRET=1 and --device cpu"
        )
    sizes = options.positive_list(batches, "batch sizes such as 1,8")
    prompts = options.positive_list(lengths, "lengths such as 512,2048")
    say(f"making {decoder}")
    base = random_base(decoder, torch.device(device), layers)
    facts = machine()
    with served(base.identity, random=stacks, rank=rank) as made:
        config = EngineConfig(
            max_batch_size=max(sizes), max_prefill_tokens=2048, prefix_caching=False, backend="cuda",
            max_context=max(prompts) + prompt_tokens + tokens + 16,
        )  # fmt: skip
        engine = StepEngine(base, made.registry, config)
        facts["backend"] = engine.backend.name
        asked = {"decoder": decoder, "layers": base.identity.layers, "stacks": stacks, "rank": rank}
        document: dict[str, Any] = {
            "machine": facts, "settings": {**asked, "rounds": rounds, "tokens": tokens, "weights": "random"},
            "decode": [], "prefill": [], "load": None, "kernels": [],
        }  # fmt: skip
        for part in _parts(engine, made.random, document, sizes, prompts, rounds, tokens, prompt_tokens):
            say(f"{part} done")
            write_results(f"{NAME}-{decoder.lower()}", document, tables(document), output)


def _parts(
    engine: StepEngine,
    domains: Sequence[str],
    document: dict[str, Any],
    batches: Sequence[int],
    lengths: Sequence[int],
    rounds: int,
    tokens: int,
    prompt: int,
) -> Any:
    """One after the other, each into `document`."""
    for batch in batches:
        document["decode"].append(decode(engine, domains, batch, rounds, tokens, prompt))
        yield f"decode of {batch}"
    if engine.base.device.type == "cuda":
        document["kernels"] = kernels(engine, domains, batches[-1], tokens=16)
        yield "kernels"
    for length in lengths:
        document["prefill"].append(prefill(engine, domains, length, rounds))
        yield f"prefill of {length}"
    document["load"] = load(engine)
    yield "load"


app = options.application(main)

if __name__ == "__main__":
    app()
