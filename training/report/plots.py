"""Plots as inline SVG: pure functions of data; equal data give equal bytes.

Series differ in colour and in dashes, cells of a matrix in how much of a colour they have, with the number
beside it: nothing is told by hue alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.intervals import Estimate
from training.report.svg import DASHES, PAPER, QUIET, SERIES, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRENGTH = 0.55
"""Opacity of the fullest cell of a matrix; ink on it stays readable."""
COLUMNS = 3
"""Panels beside each other."""


@dataclass(frozen=True)
class Line:
    """One series; a NaN in `y` leaves a gap.

    Attributes:
        style: number of its colour and dashes.
        faint: thin and grey, for what is noisy.
        marked: with a dot at each point.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    faint: bool = False
    marked: bool = False


def lines(
    title: str, panels: Mapping[str, Sequence[Line]], x: str, y: str, *, logarithmic: bool = False
) -> str:
    """One panel per entry, with a scale of its own, and one legend for all.

    Args:
        title: read out in place of the plot; unique on a page.
        x, y: what the axes show, with units.
    """
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with drawing(title, 3.3 * max(columns, 2), 2.3 * rows + 0.3) as drawn:
        axes = drawn.figure.subplots(rows, columns, squeeze=False).flat
        legend: dict[str, Any] = {}
        for ax, (name, series) in zip(axes, panels.items(), strict=False):
            for line in series:
                legend.setdefault(line.label, ax.plot(line.x, line.y, **_style(line))[0])
            ax.set_title(name)
            _label_alone(ax, series)
            if logarithmic:
                ax.set_yscale("log")
                ax.yaxis.get_major_locator().set_params(subs=(1, 3))
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter("")
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        drawn.figure.supxlabel(x)
        drawn.figure.supylabel(y)
        drawn.figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=5)
    return drawn.svg


def _label_alone(ax: Axes, series: Sequence[Line]) -> None:
    """An axis on which everything has one value shows that, where ticks around it would say nothing."""
    for show, values in (
        (ax.set_xticks, {x for line in series for x in line.x}),
        (ax.set_yticks, {y for line in series for y in line.y if not math.isnan(y)}),
    ):
        if len(values) == 1:
            show([*values], [f"{value:.5g}" for value in values])


def _style(line: Line) -> dict[str, Any]:
    if line.faint:
        return {"color": QUIET, "linewidth": 0.7, "alpha": 0.7}
    marker = "o" if line.marked or len(set(line.x)) == 1 else None  # a line of no length is not seen
    colour, dashes = SERIES[line.style % len(SERIES)], DASHES[line.style % len(DASHES)]
    return {"color": colour, "linestyle": dashes, "linewidth": 1.7, "marker": marker, "markersize": 3.5}


def estimates(title: str, rows: Mapping[str, Estimate], x: str, *, zero: bool = False) -> str:
    """A dot with its interval per row (label -> figure), the first at the top.

    Args:
        zero: draw the line at which there is no effect.
    """
    with drawing(title, 6 + _room(list(rows)), 0.32 * len(rows) + 0.7) as drawn:
        ax = drawn.figure.subplots()
        if zero:
            ax.axvline(0, color=QUIET, linewidth=1)
        for i, row in enumerate(rows.values()):
            ax.plot(row.interval, [i, i], color=SERIES[0], linewidth=2.5, solid_capstyle="butt")
            ax.plot([row.value], [i], "o", color=SERIES[0], markersize=6)
        _rows(ax, list(rows))
        ax.set_xlabel(x)
    return drawn.svg


def changes(title: str, rows: Sequence[tuple[str, float, float]], x: str) -> str:
    """(label, before, after) per row: a hollow dot, a line, a full dot; the first row at the top."""
    with drawing(title, 6 + _room([label for label, _, _ in rows]), 0.32 * len(rows) + 1.0) as drawn:
        ax = drawn.figure.subplots()
        for i, (_, before, after) in enumerate(rows):
            ax.plot([before, after], [i, i], color=SERIES[0], linewidth=1.7, zorder=1)
            ax.plot([before], [i], "o", color=SERIES[0], markerfacecolor=PAPER, label=_once("before", i))
            ax.plot([after], [i], "o", color=SERIES[0], label=_once("after", i))
        _rows(ax, [label for label, _, _ in rows])
        ax.set_xlabel(x)
        drawn.figure.legend(loc="outside upper left", ncols=2)
    return drawn.svg


def _room(labels: Sequence[str]) -> float:
    """Inches that the longest of `labels` takes."""
    return 0.08 * max(map(len, labels))


def _once(label: str, i: int) -> str | None:
    return label if i == 0 else None


def _rows(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def matrix(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    numbers: Sequence[Sequence[str]],
    x: str,
    y: str,
    full: float | None = None,
) -> str:
    """A heat map with its numbers: the fuller a cell's colour, the further its value is from 0.

    Args:
        values: [rows, columns]; NaN leaves a cell empty. Negative ones have the second colour.
        numbers: what the cells say.
        full: the value of the fullest colour; None takes the largest that there is.
    """
    width = 1.2 + _room(rows) + max(0.75, _room(columns)) * len(columns)
    with drawing(title, width, 0.36 * len(rows) + 1.1) as drawn:
        ax = drawn.figure.subplots()
        cells = np.asarray(values, np.float64)
        full = np.nanmax(np.abs(cells), initial=0.0) if full is None else full
        _cells(ax, STRENGTH * cells / (full or 1.0))
        for i, j in np.argwhere(~np.isnan(cells)):
            ax.text(j, i, numbers[i][j], ha="center", va="center", fontsize=8)
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
    return drawn.svg


def expert_shares(title: str, projections: Sequence[str], shares: Sequence[Any]) -> str:
    """A panel per projection: layers downwards, experts across, the fuller the more often chosen.

    Args:
        shares: [layers, P, N], in 0..1; the colour is at its fullest at the largest of them.
    """
    values = np.asarray(shares, np.float64)
    layers, _, experts = values.shape
    with drawing(title, 1.25 * len(projections) + 0.8, 0.09 * layers + 1.1) as drawn:
        axes = drawn.figure.subplots(1, len(projections), sharey=True, squeeze=False)[0]
        for i, (ax, name) in enumerate(zip(axes, projections, strict=True)):
            _cells(ax, values[:, i] / values.max())
            ax.set_title(name)
            ax.set_xticks(range(experts), [str(e + 1) for e in range(experts)])
        axes[0].yaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("layer")
        drawn.figure.supxlabel("expert")
    return drawn.svg


def _cells(ax: Axes, fills: NDArray[np.float64]) -> None:
    """Cells around integer coordinates, row 0 at the top, of opacity |fill| <= 1."""
    from matplotlib.colors import to_rgba

    colours = np.array([to_rgba(SERIES[0]), to_rgba(SERIES[1])])[(fills < 0).astype(int)]
    colours[..., 3] = np.nan_to_num(np.abs(fills))
    rows, columns = fills.shape
    ax.pcolormesh(np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, colours, snap=True)
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.grid(visible=False)
