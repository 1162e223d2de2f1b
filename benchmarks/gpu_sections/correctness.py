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

MOST, SHARE = 1e-3, 0.02
"""How far two ways to compute may be apart in float32: nats of a token's log-probability, and of what stacks
change. Without the share, small deltas could be missing."""
LEAST_CHANGE = 0.01
"""Nats that stacks change in each row, or these comparisons say nothing."""
ROWS = 6


def packaged_requests(setting: Setting, found: Findings) -> None:
    """Of the packaged base and the demo's stacks, whose texts mean something."""
    base = bases.packaged(setting, "cpu", "none", torch.float32)
    registry = stacks.strong(setting, base.identity, count=4) if setting.rehearse else Registry(DEMO_REGISTRY)
    _check(setting, found, base, registry)


def family_requests(setting: Setting, found: Findings) -> None:
    """Of tiny bases of several families, with random stacks that decide what is said."""
    for family in bases.FAMILIES[:1] if setting.rehearse else bases.FAMILIES:
        config = bases.tiny_config(setting, family)
        base = bases.random_base(family, config, "cpu", torch.float32, "none", setting.seed)
        _check(setting, found, base, stacks.strong(setting, base.identity, count=4))


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
    most = 0.0
    with found.attempt(f"{name}: stacks change the answers of the torch backend on the CPU") as told:
        reference = served("cpu", backend="torch")
        texts = alone(reference)
        changed = _changed(texts, answers(reference, [Question(q.prompt, {}) for q in questions], tokens))
        told.append(f"each row by {changed:.1e} nats or more")
        wanted, most = texts, min(MOST, SHARE * changed)
    if not wanted:
        return
    together: list[Text] = []
    ours = None
    with found.attempt(f"{name}: float32 answers of the {setting.backend} backend are the CPU's") as told:
        ours = served(setting.device, backend=setting.backend)
        together = answers(ours, questions, tokens)
        told.append(agree(together, wanted, most))
    if ours is None or not together:
        return
    with found.attempt(f"{name}: rows of many compositions are answered as each alone") as told:
        told.append(agree(together, alone(ours), most))
    with found.attempt(f"{name}: graphs on and off give the same bits") as told:
        plain = served(setting.device, backend=setting.backend, cuda_graphs=False)
        told.append(identical(together, answers(plain, questions, tokens)))
    with found.attempt(f"{name}: --deterministic gives the same bits whatever is beside") as told:
        strict = served(setting.device, backend=setting.backend, deterministic=True)
        strictly = answers(strict, questions, tokens)
        told += [identical(strictly, alone(strict)), agree(strictly, wanted, most)]
    with found.attempt(f"{name}: the torch backend on the GPU agrees") as told:
        told.append(agree(answers(served(setting.device, backend="torch"), questions, tokens), wanted, most))


def _changed(composed: Sequence[Text], plain: Sequence[Text]) -> float:
    """By how many nats stacks change the row that they change least; the first row has none.

    Raises:
        Mismatch: by too few.
    """
    least = min(apart(a, b) for a, b in list(zip(composed, plain, strict=True))[1:])
    if least < LEAST_CHANGE:
        raise Mismatch(f"some row by {least:.2g} nats; less than {LEAST_CHANGE:g} says nothing")
    return least


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


def apart(ours: Text, theirs: Text) -> float:
    """Nats by which log-probabilities of two texts differ at the most, as long as the texts go together.

    Where they part, each holds its own token for the likelier one: by both leads together they differ.
    """
    worst = 0.0
    for at, pair in enumerate(zip(ours.ids, theirs.ids, strict=True)):
        if pair[0] != pair[1]:
            return max(worst, ours.leads[at] + theirs.leads[at])
        worst = max(worst, abs(ours.logprobs[at] - theirs.logprobs[at]))
    return worst


def agree(ours: Sequence[Text], theirs: Sequence[Text], most: float) -> str:
    """What is to be told of it. Raises Mismatch: some row's texts are more than `most` nats apart."""
    distances = [apart(a, b) for a, b in zip(ours, theirs, strict=True)]
    worst = max(distances)
    if worst > most:
        row = distances.index(worst)
        raise Mismatch(
            f"row {row} is {worst:.2g} nats apart, {most:.1e} it may be: {list(ours[row].ids)} for "
            f"{list(theirs[row].ids)}"
        )
    parted = sum(a.ids != b.ids for a, b in zip(ours, theirs, strict=True))
    within = f"within {worst:.1e} nats; {most:.1e} are allowed"
    return within + (f"; {parted} rows parted at a tie" if parted else "")


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
