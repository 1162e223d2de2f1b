"""What it gains that deltas act on the response alone: a routed prompt is read once, whatever answers it.

    python -m benchmarks.shared_prompts

The trained registry twice: as its stacks would be if they acted everywhere, and on the response alone. The
tensors are the same: for the time it takes, it does not matter what was learnt. One request at a time.
"""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from benchmarks.instruments import options
from benchmarks.instruments.results import (
    RESULTS,
    Spread,
    machine,
    markdown_table,
    rounds_note,
    write_results,
)
from benchmarks.instruments.timing import Progress, say
from benchmarks.serving.asking import ask
from benchmarks.serving.traffic import Prompts
from brainstacks.base_model import BaseModel
from brainstacks.config import Applies, EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_router_tensors, load_stack, save_router, save_stack

NAME = "shared_prompts"
KINDS: tuple[Applies, ...] = get_args(Applies)
BASE_ONLY, ROUTED = CompositionRequest("base"), CompositionRequest("routed")

TURNS, FIRST, ANSWER, QUESTION = 5, 256, 32, 32
"""Of a conversation: how many; tokens of its first prompt, of each answer, of each further question."""


def copied(source: Registry, kind: Applies, directory: Path) -> Registry:
    """The active stacks of `source` as if they had been trained to act so, and its router for them."""
    target, digests = Registry(directory / kind, create=True), dict[str, str]()
    for domain, history in source.snapshot().domains.items():
        path = source.blob_path(history.current.digest)
        metadata, file = read_stack_metadata(path), directory / "stack.safetensors"
        config = dataclasses.replace(metadata.config, applies=kind)
        stack = save_stack(file, dataclasses.replace(metadata, config=config), load_stack(path).tensors)
        target.publish(file)
        digests[domain] = stack.digest
    router = source.snapshot().router
    if router is None:
        raise typer.BadParameter("the registry has no router; give one that has")
    path, file = source.blob_path(router.current.digest), directory / "router.safetensors"
    known = read_router_metadata(path)
    stacks = {domain: digests[domain] for domain in known.stacks}  # there may be others that it does not know
    save_router(file, dataclasses.replace(known, stacks=stacks), load_router_tensors(path))
    target.publish_router(file)
    return target


class Work:
    """Both engines, in turn."""

    def __init__(self, engines: dict[Applies, StepEngine], prompts: Prompts) -> None:
        self.engines, self.prompts = engines, prompts
        self.domains = tuple(engines["response"].stacks.serving)

    def first_tokens(self, lengths: list[int], rounds: int) -> dict[int, dict[str, list[float]]]:
        """Length -> base only, and routed with each kind of stacks -> milliseconds to the first token."""
        contestants = {"base only": (self.engines["response"], BASE_ONLY)} | {
            f"routed, {kind}": (engine, ROUTED) for kind, engine in self.engines.items()
        }
        found = {length: {name: list[float]() for name in contestants} for length in lengths}
        progress = Progress((1 + rounds) * len(lengths) * len(contestants))
        for number in range(1 + rounds):
            for length, times in found.items():
                for name, (engine, composition) in contestants.items():
                    answer = ask(engine, self.prompts.next(length), composition)
                    if number:  # the first round loads and compiles
                        times[name].append(1000 * answer.first_token_s)
                    progress.done(f"{length} tokens, {name}: {1000 * answer.first_token_s:.1f} ms")
        return found

    def conversations(self, rounds: int) -> dict[str, list[tuple[float, float]]]:
        """Kind -> (milliseconds to the first token, share of the prompt that was reused) of every turn but
        the first, each answered by another composition."""
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in self.engines}
        for number in range(1 + rounds):
            first = self.prompts.next(FIRST)
            questions = [self.prompts.next(QUESTION) for _ in range(TURNS)]
            for kind, engine in self.engines.items():
                prompt = first
                for turn in range(TURNS):
                    domain = self.domains[turn % len(self.domains)]
                    composition = CompositionRequest("fixed", {domain: 1.0 - 0.1 * turn})
                    before = engine.gauges.prompt_tokens_reused
                    answer = ask(engine, prompt, composition, tokens=ANSWER)
                    reused = (engine.gauges.prompt_tokens_reused - before) / len(prompt)
                    if number and turn:
                        found[kind].append((1000 * answer.first_token_s, reused))
                    prompt = (*prompt, *answer.tokens, *questions[turn])
        return found


def first_token_part(found: dict[int, dict[str, list[float]]]) -> tuple[list[dict[str, Any]], str]:
    documents: list[dict[str, Any]] = []
    rows: list[list[object]] = []
    for length, times in found.items():
        base = times["base only"]
        for name, milliseconds in times.items():
            spread, ratio = Spread.of(milliseconds), Spread.ratio(milliseconds, base)
            documents.append(
                {"prompt_tokens": length, "mix": name, "first_token_ms": spread, "of_base": ratio}
            )
            rows.append([length, name, spread, ratio])
    return documents, markdown_table(["prompt tokens", "", "time to first token, ms", "of base only"], rows)


def conversation_part(found: dict[str, list[tuple[float, float]]]) -> tuple[dict[str, Any], str]:
    document, rows = {}, []
    for kind, turns in found.items():
        first, reused = Spread.of(ms for ms, _ in turns), Spread.of(share for _, share in turns)
        document[kind] = {"first_token_ms": first, "reused_share": reused}
        rows.append([kind, first, reused])
    header = ["stacks act on", "time to first token, ms", "share of the prompt reused"]
    return document, markdown_table(header, rows)


def main(
    lengths: Annotated[str, typer.Option(help="Prompt lengths, separated by commas.")] = "64,512,1024",
    rounds: options.Rounds = 5,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    registry: options.Trained = options.DEMO_REGISTRY,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Time to first token, routed against the base alone, and prefixes reused in a conversation whose turns
    are answered by different compositions: where deltas act everywhere, and on the response alone.

    A quick look: python -m benchmarks.shared_prompts --rounds 1 --lengths 64
    """
    sizes = options.positive_list(lengths, "prompt lengths such as 64,512")
    facts = machine()
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        bases: list[BaseModel] = [options.load(base, quantization, device) for _ in KINDS]
        engines = {
            kind: StepEngine(each, copied(Registry(registry), kind, scratch), EngineConfig())
            for kind, each in zip(KINDS, bases, strict=True)
        }
        facts["backend"] = engines["response"].backend.name
        work = Work(engines, Prompts(bases[0], seed))
        say("first tokens ...")
        documents, table = first_token_part(work.first_tokens(sizes, rounds))
        say("conversations ...")
        turns, text = conversation_part(work.conversations(rounds))
    chosen = options.asked(base, quantization, device, rounds=rounds, lengths=sizes, seed=seed)
    told = (
        f"{table}\n\nTurns 2 to {TURNS} of a conversation that begins with {FIRST} tokens, each answered by "
        f"another composition with {ANSWER} tokens and followed by a question of {QUESTION}:\n\n{text}"
    )
    document = {"machine": facts, "settings": chosen, "first_token": documents, "conversation": turns}
    write_results(NAME, document, rounds_note(rounds) + told, output)


app = options.application(main)

if __name__ == "__main__":
    app()
