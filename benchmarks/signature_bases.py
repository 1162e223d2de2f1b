"""What another base does to a signature: made on each quantisation, read on each.

    python -m benchmarks.signature_bases --data DATA

A base is read twice: exactly, as signatures are made, and as the engine serves it, where a CPU may round
activations to int8. `ROUNDING` of `training/rounds/signature.py` and the rule `holds` of
`brainstacks/stacks/signature_file.py` come from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
import typer
from torch import Tensor

from benchmarks.instruments import options
from benchmarks.instruments.examples import drawn, examples_of
from benchmarks.instruments.results import RESULTS, machine, markdown_table, write_results
from benchmarks.instruments.timing import Progress
from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig, Quantization
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import RouteRequest
from brainstacks.routing.features import pad_features
from brainstacks.routing.policy import GATE_THRESHOLD
from brainstacks.routing.reader import Reader, Reading, Served
from brainstacks.routing.signature import Signature, Signatures, distances, pooled, probabilities, seen_from
from training.data.encoding import Example
from training.rounds.signature import NEUTRAL, prompt_vectors, signature_of

NAME = "signature_bases"
EXACT, SERVED = "exact", "served"
NO_DOMAIN = ""
"""Beside the domains' names: the prompts of `NEUTRAL`."""

Prompts = Mapping[str, list[tuple[int, ...]]]
"""Domain -> ids of its prompts."""

Vectors = Mapping[str, Tensor]
"""Domain -> the same prompts, [n, 2, d] float32."""


class Recorder(Reader):
    """Reads nothing; keeps the pooled features of each prompt, [1, 2, d] float32."""

    def __init__(self, some: Signature, device: torch.device) -> None:
        super().__init__(None, {"any": Served("", some)}, device)
        self.seen: list[Tensor] = []

    def from_features(self, features: Sequence[Tensor]) -> list[Reading]:
        self.seen.append(pooled(*pad_features(features)).cpu())
        return super().from_features(features)


def served_vectors(base: BaseModel, prompts: Prompts, some: Signature) -> Vectors:
    """What the engine makes of the prompts, one at a time; `some` says which features to keep."""
    engine = StepEngine(base, None, EngineConfig())
    recorder = engine.serving.reading.reader = Recorder(some, base.device)
    found = {}
    for domain, texts in prompts.items():
        for number, ids in enumerate(texts):
            engine.add(RouteRequest(f"{domain}-{number}", ids), lambda reply: None)
            while engine.has_work:
                engine.step()
        found[domain] = torch.cat(recorder.seen)
        recorder.seen.clear()
    return found


def signatures_of(vectors: Vectors, quantization: Quantization) -> dict[str, Signature]:
    """Of each domain."""
    return {
        domain: signature_of(vectors[NO_DOMAIN], prompts, quantization)
        for domain, prompts in vectors.items()
        if domain != NO_DOMAIN
    }


def moved(signatures: Mapping[str, Signature], here: Vectors, there: Vectors) -> dict[str, float]:
    """What becomes of prompts of the same texts where they are read `there`, and not `here`, where the
    signatures were made: medians over all domains.

    `added` is what a distance gains, in quadrature; `shift` the same in the domain's standard deviations.
    """
    all_of = Signatures(signatures, torch.device("cpu"))
    added, shift, applied = [], [], []
    for i, (domain, signature) in enumerate(signatures.items()):
        near, far = (_distances(signature, vectors[domain]) for vectors in (here, there))
        added.append((far.square() - near.square()).clamp(min=0).sqrt())
        shift.append((far - near) / signature.distances[1])
        applied.append((probabilities(all_of.scores_of(there[domain]))[:, i] > GATE_THRESHOLD).double())
    return {
        "added": float(torch.cat(added).median()),
        "shift": float(torch.cat(shift).median()),
        "least_shift": float(torch.stack([s.median() for s in shift]).min()),
        "most_shift": float(torch.stack([s.median() for s in shift]).max()),
        "applied": float(torch.cat(applied).mean()),
    }


def _distances(signature: Signature, prompts: Tensor) -> Tensor:
    offsets = seen_from(signature.centre, prompts) - signature.mean
    return distances(offsets[:, None], signature.spread[None])[:, 0]


def main(
    data: Annotated[Path, typer.Option(exists=True, help="Directory of <domain>/{train,validation}.jsonl.")],
    base: options.Base = options.DEFAULT_BASE,
    quantizations: Annotated[str, typer.Option(help="Separated by commas.")] = "native,nf4,int8",
    device: options.Device = "auto",
    train: Annotated[int, typer.Option(min=8, help="Training prompts of a signature.")] = 96,
    validation: Annotated[int, typer.Option(min=1, help="Validation prompts of each domain.")] = 24,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """What another base does to a signature: made on each quantisation, read on each.

    A quick look: python -m benchmarks.signature_bases --data DIR --train 16 --validation 4
    """
    kinds = quantizations.split(",")
    if unknown := set(kinds) - set(get_args(Quantization)):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: no quantisation")
    asked = options.asked(base, quantizations, device, train=train, validation=validation, seed=seed)
    made: dict[str, dict[str, Signature]] = {}
    read: dict[str, dict[str, Vectors]] = {}
    progress = Progress(len(kinds))
    for kind in kinds:
        loaded = options.load(base, kind, device)
        taken, shown = _prompts(loaded, data, train, validation, seed)
        vectors = {domain: prompt_vectors(loaded, prompts) for domain, prompts in taken.items()}
        made[kind] = signatures_of(vectors, cast(Quantization, kind))
        exact = {domain: prompt_vectors(loaded, prompts) for domain, prompts in shown.items()}
        read[kind] = {EXACT: exact, SERVED: served_vectors(loaded, shown, next(iter(made[kind].values())))}
        progress.done(f"{kind}: {sum(map(len, shown.values()))} prompts read twice")
    pairs = {
        one: {
            f"{other}, {how}": moved(made[one], read[one][EXACT], read[other][how])
            for other in kinds
            for how in (EXACT, SERVED)
        }
        for one in kinds
    }
    document = {"machine": machine(), "asked": asked, "moved": pairs}
    write_results(NAME, document, tables(pairs), output)


def _prompts(base: BaseModel, data: Path, train: int, validation: int, seed: int) -> tuple[Prompts, Prompts]:
    """Domain -> prompts that make its signature, those of no domain among them; and prompts to be read."""
    taken = {NO_DOMAIN: examples_of(base, NEUTRAL)}
    shown = {}
    for directory in sorted(path for path in data.iterdir() if path.is_dir()):
        taken[directory.name], shown[directory.name] = drawn(base, directory, train, validation, seed)
    return _prompts_of(taken), _prompts_of(shown)


def _prompts_of(examples: Mapping[str, list[Example]]) -> Prompts:
    return {domain: [tuple(e.prompt) for e in some] for domain, some in examples.items()}


def tables(pairs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        [
            one, other, f"{m['added']:.3f}",
            f"{m['shift']:+.2f} ({m['least_shift']:+.2f}..{m['most_shift']:+.2f})", f"{m['applied']:.0%}",
        ]
        for one, others in pairs.items()
        for other, m in others.items()
    ]  # fmt: skip
    return "\n\n".join(
        (
            "Validation prompts of each domain under its signature. Added: what their distance gains, in "
            "quadrature. Shift: in the domain's standard deviations (medians of the domains, from the least "
            "to the most). Applied: the domain's stack is above the gate by its signature.",
            markdown_table(["made on", "read on", "added", "shift", "applied"], rows),
        )
    )


app = options.application(main)

if __name__ == "__main__":
    app()
