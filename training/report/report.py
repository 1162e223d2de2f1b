"""The report of a run: what its directory and the registry say, on one page with plots.

Each section is a function of the records; where its input is missing, it names the command that makes it.
"""

from __future__ import annotations

from pathlib import Path

from brainstacks.durable import atomic_write
from brainstacks.stacks.registry import Registry
from training.progress import tracked
from training.report.page import render
from training.report.records import RunRecords
from training.report.reinforcement import reinforcement
from training.report.routing import router_training, routing
from training.report.serving import evaluation, lm_eval, transfer
from training.report.stacks import expert_use, null_space, spectra, subspaces
from training.report.training import facts, forgetting, loss_curves, residual_rounds
from training.runs.paths import RunPaths

SECTIONS = (
    facts,
    loss_curves,
    residual_rounds,
    reinforcement,
    forgetting,
    evaluation,
    lm_eval,
    transfer,
    router_training,
    routing,
    expert_use,
    subspaces,
    spectra,
    null_space,
)


def write_report(path: Path, registry: Registry) -> Path:
    """Write `report.html` into the run's directory `path`, and return where it is.

    A run that is going on is shown as far as it is.

    Args:
        registry: that the run publishes to.

    Raises:
        ConfigError: there is no run in `path`, or one of its files is damaged.
        StorageFull: no room for the page.
    """
    records = RunRecords(RunPaths(path), registry)
    with tracked(SECTIONS, "drawing the report", "sections") as each:
        sections = [section(records) for section in each]
    atomic_write(records.run.report, render(f"Run {path.resolve().name}", sections))
    return records.run.report
