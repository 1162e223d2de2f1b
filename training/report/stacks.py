"""The report's sections on what the stacks are: which experts they use, where they write, and how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from brainstacks.stacks.card import plain
from training.evaluation.expert_use import ExpertUse
from training.report import plots
from training.report.page import Figure, Section, Table
from training.report.records import RunRecords
from training.rounds.subspaces import (
    DIRECTIONS,
    Overlap,
    overlaps,
    read_subspace,
    singular_spectrum,
    write_subspace,
)

MAKER = "brainstacks-train curriculum"


def expert_use(records: RunRecords) -> Section:
    title = "Expert use"
    if records.expert_use is None:
        return Section(title, command="brainstacks-train evaluate")
    figures, tables = [], []
    for domain, use in records.expert_use.items():
        for n, shares in enumerate(use.shares.tolist(), 1):
            name = f"{domain}, round {n}"
            svg = plots.expert_shares(f"{title}, {name}", use.projections, shares)
            figures.append(Figure(svg, _use_caption(name, use, n)))
            rows = [
                (str(layer), *(" ".join(f"{share:.0%}" for share in gate) for gate in gates))
                for layer, gates in enumerate(shares)
            ]
            tables.append(Table(f"Shares of the experts, {name}", ("layer", *use.projections), rows))
    return Section(title, figures, tables)


def _use_caption(name: str, use: ExpertUse, n: int) -> str:
    most = float(use.shares[n - 1].max())
    return (
        f"{name}: share of each gate's dispatches that an expert gets, over {use.tokens:,} tokens of the "
        f"domain's validation records; 0% is blank, {most:.0%} the fullest, and an even split would be "
        f"{1 / use.shares.shape[-1]:.0%} everywhere."
    )


def subspaces(records: RunRecords) -> Section:
    title = "Subspaces"
    if len(records.stacks) < 2:
        return Section(title, text=["It takes the stacks of two domains."], command=MAKER)
    stacks = {domain: stack for domain, (_, stack) in records.stacks.items()}
    figures, rows = [], []
    for does, subspace in (("write", write_subspace), ("read", read_subspace)):
        pairs = overlaps(stacks, subspace)
        caption = (
            f"Mean squared cosine between the {DIRECTIONS} directions that two stacks {does} most: 0 is "
            "orthogonal, 1 the same; what random directions would give is in the table."
        )
        figures.append(Figure(_cosines(f"{title}, {does}", list(stacks), pairs), caption))
        rows += [(does, a, b, f"{o.cosine:.4f}", f"{o.random:.4f}") for (a, b), o in pairs.items()]
    columns = ("subspace", "stack", "stack", "mean squared cosine", "of random ones")
    return Section(title, figures, [Table("Pairs", columns, rows)])


def _cosines(title: str, stacks: Sequence[str], pairs: dict[tuple[str, str], Overlap]) -> str:
    both = pairs | {(b, a): overlap for (a, b), overlap in pairs.items()}
    values = [[both[a, b].cosine if (a, b) in both else math.nan for b in stacks] for a in stacks]
    numbers = [[f"{value:.3f}" for value in row] for row in values]
    return plots.matrix(title, stacks, stacks, values, numbers, "stack", "stack", full=1.0)


def spectra(records: RunRecords) -> Section:
    title = "Singular spectra"
    if not records.stacks:
        return Section(title, command=MAKER)
    caption = (
        "Singular values of the stacks' delta matrices, relative to the largest, averaged over layers: a "
        "line that falls early uses few of its directions, a flat one uses all."
    )
    panels: dict[str, list[plots.Line]] = {}
    rows = []
    for i, (domain, (_, stack)) in enumerate(records.stacks.items()):
        for projection, found in singular_spectrum(stack).items():
            values = found.tolist()
            line = plots.Line(domain, range(1, len(values) + 1), [_positive(v) for v in values], style=i)
            panels.setdefault(projection, []).append(line)
            rows.append((domain, projection, " ".join(f"{value:.3f}" for value in values)))
    svg = plots.lines(title, panels, "number of the singular value", "share of the largest", logarithmic=True)
    return Section(title, [Figure(svg, caption)], [Table("Values", ("stack", "projection", "values"), rows)])


def _positive(value: float) -> float:
    """`value`, or NaN where a logarithmic axis has no place for it."""
    return value if value > 0 else math.nan


def null_space(records: RunRecords) -> Section:
    title = "Null space"
    stacks = {domain: metadata.null_space for domain, (metadata, _) in records.stacks.items()}
    facts: dict[str, Mapping[str, Any]] = {domain: found for domain, found in stacks.items() if found}
    if not facts:
        none = "No stack of the registry was trained with it; `null_space:` in a recipe turns it on."
        return Section(title, text=[none])
    text = "What these stacks were kept out of: directions that earlier domains use, folded into the weights."
    columns = list(dict.fromkeys(name for found in facts.values() for name in found))
    rows = [(domain, *(plain(found.get(name)) for name in columns)) for domain, found in facts.items()]
    return Section(title, tables=[Table("Facts", ("stack", *columns), rows, True)], text=[text])
