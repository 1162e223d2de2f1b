"""A drawing of matplotlib as inline SVG in the page's colours: equal drawings give equal bytes.

Colours are CSS variables of the page, with a light theme's as fallback, so that one drawing serves light and
dark. Text stays text.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, GRID, PAPER = "#1c1b1a", "#6b6862", "#e4e1db", "#fffffe"
SERIES = ("#0072b2", "#c44e00", "#00805e", "#b0508a", "#7a6a00", "#5b4fb5")
"""Told apart by people with any kind of colour vision; in contrast to the paper."""
DASHES = ("-", "--", "-.", ":")
VARIABLES = {INK: "ink", QUIET: "quiet", GRID: "grid", PAPER: "panel"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}
"""Colour that is drawn with -> the page's CSS variable."""


class Drawing:
    """A figure, and its SVG once it is finished."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.svg = ""


@contextmanager
def drawing(title: str, width: float, height: float) -> Iterator[Drawing]:
    """Draw within the block (inches); no state of matplotlib outlives it."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(_settings(title), after_reset=True):
        drawn = Drawing(Figure(figsize=(width, height), layout="constrained"))
        yield drawn
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawn.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        drawn.svg = _inline(title, file.getvalue())


def _settings(salt: str) -> dict[str, Any]:
    inks = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inks, INK),
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.edgecolor": QUIET,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "legend.frameon": False,
        "figure.labelsize": 9,
    }


def _inline(title: str, document: str) -> str:
    """The `svg` element alone: named, in the page's colours, its ids like no other plot's."""
    prefix = "p" + hashlib.sha256(title.encode()).hexdigest()[:8]
    svg = document[document.index("<svg") :]
    svg = re.sub(r'(\bid="|\burl\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub("#[0-9a-f]{6}", lambda found: _themed(found[0]), svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _themed(colour: str) -> str:
    return f"var(--{VARIABLES[colour]}, {colour})" if colour in VARIABLES else colour
