"""The study as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.instruments.results import markdown_table
from benchmarks.scaling.profile import ASSUMED, Profile
from benchmarks.scaling.study import Cell
from benchmarks.scaling.validation import Compared
from training.evaluation.intervals import Estimate

SHARES = ("tokens_per_second", "kept_up", "hit_rate", "loads", "far_loads", "reused", "imbalance")


def plain(one: Estimate, scale: float = 1.0) -> str:
    low, high = one.interval
    return f"{scale * one.value:.3g} ({scale * low:.3g}..{scale * high:.3g})"


def constants(profile: Profile) -> str:
    rows: list[tuple[object, ...]] = [
        ("a decode step in itself", f"{1000 * profile.step:.3g} ms", profile.files["decode step"]),
        ("... for each row", f"{1000 * profile.row:.3g} ms", profile.files["decode step"]),
        (
            "... for each stack that some row applies",
            f"{1000 * profile.stack:.3g} ms",
            profile.files["decode step"],
        ),
        ("... for each stack of each row", f"{1000 * profile.pair:.3g} ms", profile.files["decode step"]),
        ("a prompt token", f"{1000 * profile.token:.3g} ms", profile.files["prompts"]),
        ("... for each stack", f"{1000 * profile.token_stack:.3g} ms", profile.files["prompts"]),
        ("bytes of a stack", f"{profile.stack_bytes:,}", profile.files["bytes of a stack"]),
        *(
            (f"to load one from {source}", f"{1000 * seconds:.3g} ms", profile.files["loads, by bytes"])
            for source, seconds in profile.loads.items()
        ),
        (
            "times as long as a step takes while one is loaded",
            f"{profile.while_loading:.3g}",
            profile.files["steps while a stack is loaded"],
        ),
        *((f"assumed: {what}", f"{value:g}", "nothing") for what, value in ASSUMED.items()),
    ]
    worst = max(abs(one) for one in profile.off)
    note = f"The decode steps that were fitted are missed by {100 * worst:.1f} % at most."
    return f"{markdown_table(['constant', 'value', 'taken from'], rows)}\n\n{note}"


def cells_table(cells: Sequence[Cell]) -> str:
    header = (
        "domains", "replicas", "router", "first token, s: p50", "p95", "between tokens, ms: p50", "p95",
        "tok/s a replica", "kept up", "hits", "loads a request", "from afar", "prompt reused", "busiest",
    )  # fmt: skip
    rows = [
        (
            cell.domains, cell.replicas, cell.router,
            plain(cell.figures["first_p50"]), plain(cell.figures["first_p95"]),
            plain(cell.figures["gap_p50"], 1000), plain(cell.figures["gap_p95"], 1000),
            *(plain(cell.figures[name]) for name in SHARES),
        )
        for cell in cells
    ]  # fmt: skip
    return markdown_table(header, rows)


def patience_table(found: Mapping[str, Mapping[str, Estimate]]) -> str:
    routers = [*next(iter(found.values()))]
    rows = [(name, *(plain(by_router[router]) for router in routers)) for name, by_router in found.items()]
    return markdown_table(("stacks", *routers), rows)


def compared_table(found: Sequence[Compared]) -> str:
    rows = [
        (one.file, one.case, one.figure, f"{one.measured:.4g}", f"{one.simulated:.4g}", f"{one.ratio:.2f}")
        for one in found
    ]
    return markdown_table(("file", "case", "figure", "measured", "simulated", "ratio"), rows)
