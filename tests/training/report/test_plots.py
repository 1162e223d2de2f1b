"""Plots: the same bytes for the same data, at home in any page, and telling what the data says."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from training.evaluation.intervals import Estimate
from training.report import plots
from training.report.page import TEMPLATES
from training.report.plots import STRENGTH, Line
from training.report.svg import SERIES, VARIABLES

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</text><script>alert('$x$')</script> & \"quoted\""


def lines(title: str = "lines", name: str = "chat") -> str:
    series = [
        Line(name, [0, 1, 2], [3.0, math.nan, 1.0], marked=True),
        Line("noise", [0, 1, 2], [3.0, 2.5, 1.0], faint=True),
    ]
    return plots.lines(title, {name: series, "other": series}, "steps", "nats", logarithmic=True)


def estimates(title: str = "estimates", name: str = "chat") -> str:
    return plots.estimates(title, {name: Estimate(-1.0, (-1.5, -0.5))}, "nats", zero=True)


def changes(title: str = "changes", name: str = "chat") -> str:
    return plots.changes(title, [(name, 3.0, 2.0), ("math", 2.0, 1.5)], "nats")


def matrix(title: str = "matrix", name: str = "chat") -> str:
    values, numbers = [[0.5, math.nan], [-1.0, 0.25]], [["0.50", "-"], ["-1.00", "0.25"]]
    return plots.matrix(title, [name, "math"], [name, "math"], values, numbers, "stack", "prompts of")


def expert_shares(title: str = "shares", name: str = "q_proj") -> str:
    return plots.expert_shares(title, [name, "v_proj"], [[[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75]] * 2])


EVERY = pytest.mark.parametrize("plot", [lines, estimates, changes, matrix, expert_shares])
Plot = Callable[..., str]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def cells(svg: str) -> list[tuple[str, float]]:
    """(colour, opacity) of the cells of a heat map that have a colour, row by row."""
    root = ElementTree.fromstring(svg)
    (mesh,) = (g for g in root.iter(f"{SVG}g") if "QuadMesh" in g.get("id", ""))
    found = []
    for path in mesh.iter(f"{SVG}path"):
        style = dict(part.split(": ", 1) for part in path.get("style", "").split("; "))
        if style["fill"] != "none":
            found.append((style["fill"], float(style.get("fill-opacity", "1"))))
    return found


@EVERY
def test_equal_data_give_equal_bytes_and_other_data_do_not(plot: Plot) -> None:
    assert plot() == plot()
    assert plot() != plot(name="code")


@EVERY
def test_no_setting_of_matplotlib_is_taken_or_left(plot: Plot) -> None:
    import matplotlib

    plain = plot()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert plot() == plain
        assert dict(matplotlib.rcParams) == before


@EVERY
def test_names_from_files_stay_text(plot: Plot) -> None:
    svg = plot(title=NASTY, name=NASTY)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == NASTY
    assert not [element for element in root.iter() if "script" in element.tag]
    assert NASTY in texts(svg)


def test_plots_of_one_page_share_no_id_and_refer_to_their_own() -> None:
    page = "".join(plot() for plot in (lines, estimates, changes, matrix, expert_shares))
    page += matrix("another matrix")
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert max(ids.values()) == 1
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert {a or b for a, b in referred} <= set(ids)


@EVERY
def test_nothing_is_fetched_and_every_colour_is_the_page_s(plot: Plot) -> None:
    svg = plot()
    assert set(re.findall(r"\w+://[^\"' ]+", svg)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert set(re.findall("#[0-9a-f]{6}", svg)) == set(re.findall(r"var\(--[\w-]+, (#[0-9a-f]{6})\)", svg))
    assert {f"--{name}:" for name in VARIABLES.values()} <= set(re.findall(r"--[\w-]+:", page_style()))


def test_a_matrix_fills_its_cells_by_value_and_says_the_numbers() -> None:
    positive, negative = f"var(--series-0, {SERIES[0]})", f"var(--series-1, {SERIES[1]})"
    found = cells(matrix())
    assert [colour for colour, _ in found] == [positive, negative, positive]
    assert [opacity for _, opacity in found] == pytest.approx(
        [STRENGTH * s for s in (0.5, 1, 0.25)], abs=1e-4
    )
    assert {"0.50", "-1.00", "0.25", "chat", "math", "stack", "prompts of"} <= set(texts(matrix()))
    assert "-" not in texts(matrix()), "an empty cell says nothing"


def test_a_matrix_of_zeros_is_empty() -> None:
    svg = plots.matrix("zeros", ["a"], ["a"], [[0.0]], [["0"]], "x", "y")
    assert cells(svg) == []


def test_a_matrix_with_a_scale_of_its_own_keeps_to_it() -> None:
    svg = plots.matrix("scaled", ["a"], ["a"], [[0.1]], [["0.1"]], "x", "y", full=1.0)
    assert cells(svg)[0][1] == pytest.approx(0.1 * STRENGTH, abs=1e-4)


def test_panels_have_one_legend() -> None:
    assert texts(lines()).count("noise") == 1
    assert texts(changes()).count("before") == 1


# --- readable in light and dark ------------------------------------------------------------------


def page_style() -> str:
    return (TEMPLATES / "report.html").read_text(encoding="utf-8")


def theme(dark: bool) -> dict[str, str]:
    """Variable -> colour of the page."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", page_style())
    return {name: (on_dark if dark else on_light) for name, on_light, on_dark in pairs}


def channels(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def contrast(a: list[float], b: list[float]) -> float:
    """WCAG 2.2."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_and_text_stand_out_in_both_themes(dark: bool) -> None:
    colours = {name: channels(value) for name, value in theme(dark).items()}
    for i in range(len(SERIES)):
        assert contrast(colours[f"series-{i}"], colours["panel"]) >= 3
    for text, ground in (("ink", "panel"), ("quiet", "panel"), ("ink", "paper"), ("accent", "paper")):
        assert contrast(colours[text], colours[ground]) >= 4.5
    for i in (0, 1):
        mixed = zip(colours[f"series-{i}"], colours["panel"], strict=True)
        fullest = [STRENGTH * c + (1 - STRENGTH) * p for c, p in mixed]
        assert contrast(colours["ink"], fullest) >= 4.5


def test_an_axis_with_one_value_says_it() -> None:
    svg = plots.lines("One", {"a": [Line("x", [7], [2.71831], marked=True)]}, "steps", "loss")
    assert {"7", "2.7183"} <= set(texts(svg))
