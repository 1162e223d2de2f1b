"""A page of sections with plots and tables: one HTML file that needs no other, and no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).parents[1] / "templates"
NATS = "nats per answer token"


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        svg: from `training.report.plots`; goes into the page as it is.
        caption: what it shows, and how to read it.
    """

    svg: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Numbers behind a plot, folded away unless `open`."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    open: bool = False


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        text: paragraphs.
        command: where there is nothing to show, what makes it.
        document: a longer text, shown as it is, folded away.
    """

    title: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    text: Sequence[str] = ()
    command: str = ""
    document: str = ""


def render(title: str, sections: Sequence[Section]) -> str:
    """The HTML document; everything but the plots is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html").render(title=title, sections=sections)


def nats(value: float) -> str:
    """A loss, for a cell."""
    return "-" if math.isnan(value) else f"{value:.4f}"
