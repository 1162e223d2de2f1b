"""Whole requests: the cuda backend against the CPU, against itself, and against its neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu_sections import bases, stacks
from benchmarks.gpu_sections.engines import Question, Text, answers, engine
from benchmarks.gpu_sections.findings import Findings, Mismatch
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.options import DEMO_REGISTRY
from benchmarks.serving import traffic
from benchmarks.serving.traffic import Prompts
from brainstacks.base_model import BaseModel
from brainstacks.engine.engine import StepEngine
from brainstacks.stacks.registry import Registry

TIE = 1e-3
"""Nats: a choice between two tokens that are no further apart may differ between two ways to add."""
CLOSE = 2e-3
"""Nats that a float32 log-probability may differ by."""
ROWS = 6
STRONG = {"b_std": stacks.STRONG}


def packaged_requests(setting: Setting, found: Findings) -> None:
    """Of the packaged base and the demo's stacks, whose texts mean something."""
    base = bases.packaged(setting, "cpu", "none", torch.float32)
    registry = (
        stacks.registry(setting, base.identity, count=4, **STRONG)
        if setting.rehearse
        else Registry(DEMO_REGISTRY)
    )
    _check(setting, found, base, registry)


def family_requests(setting: Setting, found: Findings) -> None:
    """Of tiny bases of several families, with random stacks that decide what is said."""
    for family in bases.FAMILIES[:1] if setting.rehearse else bases.FAMILIES:
        config = bases.tiny_config(family)
        base = bases.random_base(family, config, "cpu", torch.float32, "none", setting.seed)
        _check(setting, found, base, stacks.registry(setting, base.identity, count=4, **STRONG))


def _check(setting: Setting, found: Findings, base: BaseModel, registry: Registry) -> None:
    tokens = 2 if setting.rehearse else 24
    questions = _questions(base, registry, setting)

    def served(device: str, **limits: Any) -> StepEngine:
        most = {"max_batch_size": ROWS, "max_context": setting.context // 4, **limits}
        return engine(bases.elsewhere(base, device), registry, **most)

    def alone(of: StepEngine) -> list[Text]:
        return [text for question in questions for text in answers(of, [question], tokens)]

    name = base.name
    wanted: list[Text] = []
    with found.attempt(f"{name}: answers of the torch backend on the CPU"):
        wanted = alone(served("cpu", backend="torch"))
    if not wanted:
        return
    ours = served(setting.device, backend="cuda")
    together = answers(ours, questions, tokens)
    with found.attempt(f"{name}: float32 answers of the cuda backend are the CPU's") as told:
        told.append(agree(together, wanted))
    with found.attempt(f"{name}: rows of many compositions are answered as each alone") as told:
        told.append(agree(together, alone(ours)))
    with found.attempt(f"{name}: stacks change the answers, and not those of the base alone"):
        base_only = answers(ours, [Question(question.prompt, {}) for question in questions], tokens)
        for question, text, plain in zip(questions, together, base_only, strict=True):
            if (text.logprobs[0] == plain.logprobs[0]) == bool(question.weights):
                raise Mismatch(f"composed of {dict(question.weights)}: {text.logprobs[0]} nats of the first")
    with found.attempt(f"{name}: graphs on and off give the same bits") as told:
        told.append(
            identical(
                together,
                answers(served(setting.device, backend="cuda", cuda_graphs=False), questions, tokens),
            )
        )
    with found.attempt(f"{name}: --deterministic gives the same bits whatever is beside") as told:
        strict = served(setting.device, backend="cuda", deterministic=True)
        told.append(identical(answers(strict, questions, tokens), alone(strict)))
    with found.attempt(f"{name}: the torch backend on the GPU agrees") as told:
        told.append(agree(answers(served(setting.device, backend="torch"), questions, tokens), wanted))


def _questions(base: BaseModel, registry: Registry, setting: Setting) -> list[Question]:
    """Of no, one, several and all stacks, with weights of either sign; prompts of several lengths."""
    domains = list(registry.snapshot().domains)
    weights: list[traffic.Composition] = [
        {},
        {domains[0]: 1.0},
        dict(zip(domains, traffic.WEIGHTS, strict=False)),
        {domains[1]: -0.7, domains[-1]: 0.4},
        dict.fromkeys(domains, 1.0),
        {domains[-1]: 2.0},
    ]
    lengths = itertools.cycle((2, 5) if setting.rehearse else (24, 7, 65))
    prompts = Prompts(base, setting.seed)
    rows = 2 if setting.rehearse else ROWS
    return [Question(prompts.next(length), row) for row, length in zip(weights[:rows], lengths, strict=False)]


def agree(ours: Sequence[Text], theirs: Sequence[Text]) -> str:
    """What is to be told of it. Raises Mismatch: texts part where no tie does, or are less close."""
    ties, worst = 0, 0.0
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        parted = next(
            (at for at, pair in enumerate(zip(a.ids, b.ids, strict=True)) if pair[0] != pair[1]), None
        )
        shared = len(b.ids) if parted is None else parted
        pairs = zip(a.logprobs[:shared], b.logprobs[:shared], strict=True)
        worst = max([worst, *(abs(x - y) for x, y in pairs)])
        if parted is not None and b.leads[parted] > TIE:
            raise Mismatch(
                f"row {row} parts at token {parted}, {a.ids[parted]} for {b.ids[parted]}, which led by "
                f"{b.leads[parted]:.2g} nats; until there they were within {worst:.2g}"
            )
        ties += parted is not None
    if worst > CLOSE:
        raise Mismatch(f"log-probabilities differ by {worst:.2g} nats; by {CLOSE:g} they may")
    return f"within {worst:.1e} nats" + (f"; {ties} rows parted at a tie" if ties else "")


def identical(ours: Sequence[Text], theirs: Sequence[Text]) -> str:
    """What is to be told of it. Raises Mismatch: a token or a bit of a log-probability differs."""
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            differing = (at for at, (x, y) in enumerate(zip(a.logprobs, b.logprobs, strict=True)) if x != y)
            at = next(differing, 0)
            raise Mismatch(
                f"row {row} differs from token {at} on: {a.ids[at]} at {a.logprobs[at]!r}, {b.ids[at]} at "
                f"{b.logprobs[at]!r}"
            )
    return f"{sum(len(text.ids) for text in ours)} tokens"
