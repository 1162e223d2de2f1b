"""Reading prompts: tokens per second, time to first token, the router's share of it, and prefixes reused.

    python -m benchmarks.prefill --rounds 5

One request at a time. Every prompt is new, so that nothing of it is in the prefix cache, except where reuse
itself is measured: on the second turn of a conversation, which begins with the first turn and its answer.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer

from benchmarks.instruments import options
from benchmarks.instruments.registries import Served, served
from benchmarks.instruments.results import (
    RESULTS,
    Spread,
    machine,
    markdown_table,
    met,
    rounds_note,
    write_results,
)
from benchmarks.instruments.timing import Progress, say
from benchmarks.peers import llama_cpp
from benchmarks.peers.available import llama_cpp_file
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.serving import traffic
from benchmarks.serving.asking import Answer, ask
from benchmarks.serving.engine_batch import fixed
from benchmarks.serving.traffic import Prompts
from brainstacks.base_model import identify_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest

NAME = "prefill"

ROUTER_PROMPT = 200
"""Tokens of the prompt for which the router's share has a target."""
ROUTER_SHARE = {"cpu": 0.20, "cuda": 0.10}
"""Most of the time to first token that the router may take, by device."""

TURN = 512
ANSWER = 32
"""Tokens of a conversation's first prompt, and of its answers and its second question."""

BASE_ONLY = "base only"
FOUR = "4 of 10 r16"
TRAINED = "trained registry, all active"
LLAMA_CPP = "llama.cpp, base only"
ROUTED = "routed, trained registry"


PEER_PROMPT = 512
PEER_RATIO = 1.2
"""The trained registry, all active, reads a prompt of so many tokens at least so many times as fast as
llama.cpp the base alone."""


@dataclass(frozen=True)
class Reading:
    """One prompt read: seconds to the first token, and how many stacks were active."""

    first_token_s: float
    active: int = 0


@dataclass(frozen=True)
class Work:
    """What is measured, and with what.

    Attributes:
        engine: as it is served.
        forgetful: keeps no prefixes; on a base of its own.
        peer: llama.cpp, where it can run.
    """

    engine: StepEngine
    forgetful: StepEngine
    prompts: Prompts
    mixes: dict[str, CompositionRequest]
    peer: LlamaCpp | None

    def speed(self, lengths: list[int], rounds: int) -> dict[tuple[int, str], list[Reading]]:
        """Every length and mix, and llama.cpp, in turn."""
        mixes = [*self.mixes, *([LLAMA_CPP] if self.peer is not None else [])]
        found: dict[tuple[int, str], list[Reading]] = {
            (length, mix): [] for length in lengths for mix in mixes
        }
        for mix in mixes:  # uncounted: loads and packs what later runs find ready
            self._read(mix, self.prompts.next(min(lengths)))
        progress = Progress(rounds * len(found))
        for _ in range(rounds):
            for (length, mix), readings in found.items():
                readings.append(self._read(mix, self.prompts.next(length)))
                progress.done(f"{length} tokens, {mix}: {1000 * readings[-1].first_token_s:.0f} ms")
        return found

    def _read(self, mix: str, prompt: tuple[int, ...]) -> Reading:
        if self.peer is not None and mix == LLAMA_CPP:
            return Reading(self.peer.contestant([prompt]).run(1).first_token_s)
        answer = ask(self.engine, prompt, self.mixes[mix])
        return Reading(answer.first_token_s, len(answer.routing.active))

    def router(self, rounds: int) -> list[Answer]:
        """Routed prompts of the length that the target names; one of every kind in each round."""
        answers = [
            ask(self.engine, self.prompts.next(ROUTER_PROMPT), CompositionRequest("routed"))
            for _ in range(1 + rounds * len(traffic.QUESTIONS))
        ]
        return answers[1:]  # the first one may have met a shape for the first time

    def second_turn(self, composition: CompositionRequest, rounds: int) -> dict[str, list[float]]:
        """Milliseconds to the first token of a conversation's second answer."""
        found: dict[str, list[float]] = {"with": [], "without": []}
        for number in range(1 + rounds):
            prompt = self.prompts.next(TURN)
            question = self.prompts.next(ANSWER)
            for name, engine in (("with", self.engine), ("without", self.forgetful)):
                answer = ask(engine, prompt, composition, tokens=ANSWER)
                second = ask(engine, prompt + answer.tokens + question, composition)
                if number:  # the first round is not counted
                    found[name].append(1000 * second.first_token_s)
        return found


def speed_part(found: dict[tuple[int, str], list[Reading]]) -> tuple[list[dict[str, Any]], str]:
    documents: list[dict[str, Any]] = []
    rows: list[list[object]] = []
    for (length, mix), readings in found.items():
        rate = Spread.of(length / reading.first_token_s for reading in readings)
        first = Spread.of(1000 * reading.first_token_s for reading in readings)
        active = Spread.of(float(reading.active) for reading in readings)
        documents.append(
            {
                "prompt_tokens": length,
                "mix": mix,
                "tokens_per_second": rate,
                "first_token_ms": first,
                "active_stacks": active,
            }
        )
        rows.append([length, mix, active, rate, first])
    header = ["prompt tokens", "mix", "active stacks", "prefill, tok/s", "time to first token, ms"]
    return documents, markdown_table(header, rows)


def peer_part(
    found: dict[tuple[int, str], list[Reading]], lengths: list[int]
) -> tuple[list[dict[str, Any]], str]:
    """Ours against llama.cpp's base alone, at every length."""
    documents: list[dict[str, Any]] = []
    rows: list[list[object]] = []
    for length in lengths:
        theirs = [reading.first_token_s for reading in found[length, LLAMA_CPP]]
        for mix in (BASE_ONLY, TRAINED):
            if (length, mix) not in found:
                continue
            ratio = Spread.ratio(theirs, [reading.first_token_s for reading in found[length, mix]])
            target = PEER_RATIO if (length, mix) == (PEER_PROMPT, TRAINED) else None
            verdict = "" if target is None else met(ratio.median >= target)
            rows.append([length, mix, ratio, f">= {target:g}" if target else "", verdict])
            documents.append({"prompt_tokens": length, "mix": mix, "ratio": ratio, "target": target})
    header = ["prompt tokens", "mix", "times as fast as llama.cpp, base only", "target", ""]
    return documents, markdown_table(header, rows)


def router_part(answers: list[Answer], device: str) -> tuple[dict[str, Any], str]:
    share = Spread.of(answer.router_share for answer in answers)
    target = ROUTER_SHARE[device]
    document = {"prompt_tokens": ROUTER_PROMPT, "share_of_first_token": share, "target": target}
    return document, (
        f"Router's share of the time to first token, prompts of {ROUTER_PROMPT} tokens: {share}; "
        f"target <= {target:g}: {met(share.median <= target)}."
    )


def turn_part(found: dict[str, list[float]]) -> tuple[dict[str, Any], str]:
    with_, without = Spread.of(found["with"]), Spread.of(found["without"])
    ratio = Spread.ratio(found["without"], found["with"])
    document = {"with_reuse_ms": with_, "without_reuse_ms": without, "ratio": ratio}
    return document, (
        f"Second turn after {TURN} + {ANSWER} tokens, {FOUR}: first token after {with_} ms with prefix "
        f"reuse, {without} ms without: {ratio} times as fast."
    )


def measure(work: Work, lengths: list[int], rounds: int, device: str) -> tuple[dict[str, Any], str]:
    """All parts: for the JSON document, and as text."""
    found = work.speed(lengths, rounds)
    speeds, table = speed_part(found)
    document: dict[str, Any] = {"speed": speeds}
    texts = [table]
    if work.peer is not None:
        document["llama_cpp"] = work.peer.system
        document["against_llama_cpp"], table = peer_part(found, lengths)
        texts.append(f"{table}\n\nllama.cpp says of itself: {work.peer.system}")
    if ROUTED in work.mixes:
        say("router's share ...")
        document["router"], text = router_part(work.router(rounds), device)
        texts.append(text)
    say("second turn of a conversation ...")
    document["second_turn"], text = turn_part(work.second_turn(work.mixes[FOUR], rounds))
    texts.append(text)
    return document, "\n\n".join(texts)


def mixes_of(stacks: Served) -> dict[str, CompositionRequest]:
    mixes = {BASE_ONLY: fixed({}), FOUR: fixed(traffic.apart(stacks.random))}
    if stacks.trained:
        mixes[TRAINED] = fixed(dict.fromkeys(stacks.trained, 1.0))
    if stacks.registry.snapshot().router is not None:
        mixes[ROUTED] = CompositionRequest("routed")
    return mixes


def main(
    lengths: Annotated[str, typer.Option(help="Prompt lengths, separated by commas.")] = "64,256,512,1024",
    rounds: options.Rounds = 5,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    registry: options.Trained = options.DEMO_REGISTRY,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Prefill speed by prompt length and mix, the router's share, and what reusing a prefix saves.

    The mixes: the base alone; four of ten random r16 stacks; with a trained registry, all its stacks, and
    routed text, which includes the router's pass. llama.cpp reads the same prompts with the base alone.

    A quick look: python -m benchmarks.prefill --rounds 1 --lengths 64
    """
    sizes = options.positive_list(lengths, "prompt lengths such as 64,256,512")
    facts = machine()
    with ExitStack() as opened:
        stacks = opened.enter_context(served(identify_base(base), trained=registry, seed=seed))
        loaded = [options.load(base, quantization, device) for _ in range(2)]
        engines = [
            StepEngine(each, stacks.registry, EngineConfig(prefix_caching=reuse))
            for each, reuse in zip(loaded, (True, False), strict=True)
        ]
        facts["backend"] = engines[0].backend.name
        gguf = llama_cpp_file(base, loaded[0].device)
        peer = None
        if gguf is not None:
            context = llama_cpp.context_for(max(sizes), 1)
            settings = llama_cpp.Settings(str(gguf), torch.get_num_threads(), slots=1, context=context)
            peer = opened.enter_context(llama_cpp.LlamaCpp(settings))
        work = Work(engines[0], engines[1], Prompts(loaded[0], seed), mixes_of(stacks), peer)
        document, text = measure(work, sizes, rounds, loaded[0].device.type)
    chosen = options.asked(base, quantization, device, rounds=rounds, lengths=sizes, seed=seed)
    write_results(
        NAME, {"machine": facts, "settings": chosen, **document}, rounds_note(rounds) + text, output
    )


app = options.application(main)

if __name__ == "__main__":
    app()
