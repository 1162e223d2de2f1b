"""What a run will train on: counts, lengths, what was left out, what domains have in common."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from brainstacks.stacks.document import printable
from brainstacks.tokenizer import ChatTokenizer
from training.data.contamination import Overlap, shared_prompts
from training.data.domains import DomainData
from training.data.encoding import LEAST_RESPONSE, encode
from training.progress import working
from training.recipe.settings import require

PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class DomainReport:
    """One domain.

    Attributes:
        train, selection, router, validation: records (count).
        prompt_tokens, response_tokens: lengths of the training records at `PERCENTILES`, before any cut.
        cut: share of the training records whose response is cut at the limit.
        without_room: share whose prompt leaves no room for a response, or is refused by the chat template, so
            that they are left out.
        left_out, received, overlaps: as in `DomainData`.
    """

    name: str
    train: int
    selection: int
    router: int
    validation: int
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    cut: float
    without_room: float
    left_out: Mapping[str, int]
    received: int
    overlaps: tuple[Overlap, ...]


@dataclass(frozen=True)
class DataReport:
    """All domains.

    Attributes:
        max_tokens: the limit that `cut` and `without_room` are for.
        leaks: domain -> domain -> validation prompts of the second that the first trains on, word for word
            or nearly (count). Of a domain and itself, only near-duplicates can be left.
    """

    max_tokens: int
    domains: tuple[DomainReport, ...]
    leaks: Mapping[str, Mapping[str, int]]

    def show(self, console: Console) -> None:
        """Print the tables."""
        self._show_records(console)
        self._show_lengths(console)
        self._show_leaks(console)
        for domain in self.domains:
            for overlap in domain.overlaps:
                console.print(
                    f"{overlap.first} and {overlap.second} share {overlap.exact} prompts and {overlap.near} "
                    "near-duplicates, such as:"
                )
                for example in overlap.examples:
                    console.print(f"  {printable(example[:100])}", markup=False)

    def _show_records(self, console: Console) -> None:
        header = ("domain", "train", "selection", "router", "validation", "received")
        rows = [(d.name, d.train, d.selection, d.router, d.validation, d.received) for d in self.domains]
        _table(console, "Records", header, rows)
        reasons = tuple(self.domains[0].left_out)
        left_out = [(d.name, *(d.left_out[reason] for reason in reasons)) for d in self.domains]
        _table(console, "Records left out", ("domain", *reasons), left_out)

    def _show_lengths(self, console: Console) -> None:
        percentiles = tuple(f"p{p}" for p in PERCENTILES)
        prompts = [(d.name, *d.prompt_tokens, f"{d.without_room:.1%}") for d in self.domains]
        _table(console, "Tokens of the training prompts", ("domain", *percentiles, "no room"), prompts)
        responses = [(d.name, *d.response_tokens, f"{d.cut:.1%}") for d in self.domains]
        cut = f"cut at {self.max_tokens}"
        _table(console, "Tokens of their responses", ("domain", *percentiles, cut), responses)

    def _show_leaks(self, console: Console) -> None:
        names = tuple(self.leaks)
        rows = [(name, *(self.leaks[name][other] for other in names)) for name in names]
        _table(console, "Validation prompts that training holds", ("trains / validates", *names), rows)


def report(prepared: Mapping[str, DomainData], tokenizer: ChatTokenizer, max_tokens: int) -> DataReport:
    """Measure `prepared`, with lengths in tokens of `tokenizer`."""
    domains = tuple(_domain(data, tokenizer, max_tokens) for data in prepared.values())
    with working("looking for prompts that training shares with validation"):
        return DataReport(max_tokens, domains, _leaks(prepared))


def _domain(data: DomainData, tokenizer: ChatTokenizer, max_tokens: int) -> DomainReport:
    examples = encode(data.train, tokenizer, sys.maxsize)
    require(
        bool(examples),
        f"the base's chat template refuses all training records of {data.name}; look at the roles of theirs",
    )
    roomy = [e for e in examples if max_tokens - len(e.prompt) >= LEAST_RESPONSE]
    return DomainReport(
        data.name,
        len(data.train),
        len(data.selection),
        len(data.router),
        len(data.validation),
        _percentiles([len(e.prompt) for e in examples]),
        _percentiles([len(e.response) for e in examples]),
        cut=sum(len(e) > max_tokens for e in roomy) / len(data.train),
        without_room=1 - len(roomy) / len(data.train),
        left_out=data.left_out,
        received=data.received,
        overlaps=data.overlaps,
    )


def _percentiles(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.percentile(lengths, PERCENTILES, method="nearest"))


def _leaks(prepared: Mapping[str, DomainData]) -> dict[str, dict[str, int]]:
    # Training comes first, so that an overlap of the two counts prompts of the validation records.
    trained = {f"{name}/train": data.train for name, data in prepared.items()}
    reported = {f"{name}/validation": data.validation for name, data in prepared.items()}
    found = {(o.first, o.second): o.exact + o.near for o in shared_prompts(trained | reported).overlaps}
    return {a: {b: found.get((f"{a}/train", f"{b}/validation"), 0) for b in prepared} for a in prepared}


def _table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
