"""The study as one SVG that stands alone, in colours for light and for dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.scaling.study import Cell
from training.report.svg import DASHES, SERIES, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Time to first token and hits, by replicas and domains, of each router"
DARK = {
    "ink": "#eceae6",
    "quiet": "#a09c94",
    "grid": "#3a3835",
    "panel": "#201f1d",
    **{
        f"series-{number}": colour
        for number, colour in enumerate(("#58aeea", "#ee8b4a", "#3cc79c", "#e59cc8", "#d3c04a", "#aca3f2"))
    },
}
"""As on the report's page."""
ROWS = (("first_p95", 1.0, "first token, p95, s"), ("hit_rate", 100.0, "hits, %"))
"""Figure, its scale, and what the axis says."""


def picture(cells: Sequence[Cell]) -> str:
    """A column of panels for each number of domains; bands are the 95% intervals."""
    domains, routers = (
        [*dict.fromkeys(each)] for each in zip(*((c.domains, c.router) for c in cells), strict=True)
    )
    with drawing(TITLE, 2.5 * max(len(domains), 2) + 0.5, 4.6) as drawn:
        axes = drawn.figure.subplots(len(ROWS), len(domains), sharex=True, sharey="row", squeeze=False)
        legend: dict[str, Any] = {}
        firsts = [cell.figures["first_p95"].value for cell in cells]
        for row, (figure, scale, label) in zip(axes, ROWS, strict=True):
            row[0].set_ylabel(label)
            for ax, count in zip(row, domains, strict=True):
                for style, router in enumerate(routers):
                    shown = [cell for cell in cells if (cell.domains, cell.router) == (count, router)]
                    legend[router] = _line(ax, shown, figure, scale, style)
        for ax, count in zip(axes[0], domains, strict=True):
            ax.set_title(f"{count} domains")
            ax.set_yscale("log")
            ax.set_ylim(min(firsts) / 2, max(firsts) * 2)
            ax.yaxis.set_major_formatter("{x:g}")
        for ax in axes[-1]:
            replicas = sorted({cell.replicas for cell in cells})
            ax.set_xscale("log")
            ax.set_xticks(replicas, _labels(replicas), minor=False)
            ax.xaxis.set_minor_locator(_none())
            ax.set_ylim(0, 102)
        drawn.figure.supxlabel("replicas")
        drawn.figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=len(legend))
    return alone(drawn.svg)


def alone(svg: str) -> str:
    """An inline drawing of the report as a file of its own."""
    rules = "".join(f"--{name}:{colour};" for name, colour in DARK.items())
    style = f"<style>@media (prefers-color-scheme: dark){{svg{{{rules}}}}}</style>"
    head, rest = svg.split(">", 1)
    return f"{head}>{style}{rest}"


def _line(ax: Axes, cells: Sequence[Cell], figure: str, scale: float, style: int) -> Any:
    colour = SERIES[style % len(SERIES)]
    replicas = [cell.replicas for cell in cells]
    estimates = [cell.figures[figure] for cell in cells]
    ends = [[scale * one.interval[end] for one in estimates] for end in (0, 1)]
    ax.fill_between(replicas, ends[0], ends[1], color=colour, alpha=0.15, linewidth=0)
    values = [scale * one.value for one in estimates]
    dashes = DASHES[style % len(DASHES)]
    return ax.plot(
        replicas, values, color=colour, linestyle=dashes, linewidth=1.7, marker="o", markersize=2.5
    )[0]


def _labels(numbers: Sequence[int]) -> list[str]:
    """None where the next number, the last one above all, would touch it."""
    follow = [*numbers[1:], math.inf]
    return [str(one) if after >= 1.6 * one else "" for one, after in zip(numbers, follow, strict=True)]


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
