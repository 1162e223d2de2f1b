"""The report's sections on what is served: losses by mode, and who is routed where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training import plots
from training.evaluation import Evaluation
from training.intervals import Interval, Share
from training.page import NATS, Figure, Section, Table, nats
from training.plots import Estimate
from training.router_analysis import Choices, analyse
from training.run_records import RunRecords

MAKER = "brainstacks-train evaluate"


def evaluation(records: RunRecords) -> Section:
    title, found = "Evaluation", records.evaluation
    if found is None:
        return Section(title, command=MAKER)
    gains = [Estimate(domain, value, *bounds) for domain, (value, bounds) in found.routed_less_base.items()]
    figures = [
        _means("Mean loss by mode", "the validation records", found),
        Figure(
            plots.estimates("Routed less base", gains, NATS, zero=True),
            "Loss routed less that of the base, with 95% intervals: one that lies left of the line is a gain "
            "that these records can tell from chance.",
        ),
    ]
    tables, text = [_modes("Loss by mode", found)], []
    if found.compared.records and found.regret is not None:
        count = len(found.compared.records)
        those = f"the {count} records that the best composition was searched for (oracle)"
        figures.append(_means("Mean loss by mode, with the oracle", those, found.compared))
        tables.append(_modes(f"Loss by mode, on {those}", found.compared))
        text.append(f"Routed loss against that of the best compositions searched for: {found.regret:+.1%}.")
    return Section(title, figures, tables, text)


def _means(title: str, records: str, found: Evaluation) -> Figure:
    rows = [Estimate(mode, found.mean[mode], *found.mean_intervals[mode]) for mode in found.modes]
    caption = f"Loss on {records}, mean over domains, with 95% intervals: further left is better."
    return Figure(plots.estimates(title, rows, NATS), caption)


def _modes(caption: str, found: Evaluation) -> Table:
    rows = [
        (name, *map(nats, losses.values()), _difference(*found.routed_less_base[name]))
        for name, losses in [*found.nll.items(), ("mean", found.mean)]
    ]
    bounds = [f"{low:.4f} .. {high:.4f}" for low, high in found.mean_intervals.values()]
    last = ("95% of the mean", *bounds, "")
    return Table(caption, ("domain", *found.modes, "routed - base (95%)"), [*rows, last], True)


def _difference(value: float, bounds: Interval) -> str:
    return f"{value:+.4f} ({bounds[0]:+.4f} .. {bounds[1]:+.4f})"


def routing(records: RunRecords) -> Section:
    title = "Routing"
    if records.evaluation is None:
        return Section(title, command=MAKER)
    found = analyse(records.evaluation, list(records.registry.snapshot().domains))
    columns = ("prompts of", "combinations", "use others", "without their own", "router takes the oracle's")
    figures, tables = [], []
    for who, chosen in (("the router", found.routed), ("the measured oracle", found.oracle)):
        if chosen:
            caption = (
                f"Mean weight that {who} gives each stack (column) on validation prompts of a domain (row): "
                "a bare diagonal means that prompts take their own domain's stack and no other."
            )
            figures.append(Figure(_weights(f"{title}, {who}", chosen, found.stacks), caption))
            rows = _combinations(chosen, found.agreement)
            tables.append(Table(f"Combinations that {who} takes (95% intervals)", columns, rows))
    return Section(title, figures, tables)


def _weights(title: str, chosen: Mapping[str, Choices], stacks: Sequence[str]) -> str:
    values = [[choices.mean_weights[stack] for stack in stacks] for choices in chosen.values()]
    numbers = [[f"{value:.2f}" for value in row] for row in values]
    return plots.matrix(title, list(chosen), stacks, values, numbers, "stack", "prompts of", full=1.0)


def _combinations(chosen: Mapping[str, Choices], agreement: Mapping[str, Share]) -> list[tuple[str, ...]]:
    return [
        (
            domain,
            "; ".join(f"{name or 'base alone'} {share}" for name, share in choices.combinations.items()),
            str(choices.uses_others),
            str(choices.without_own),
            str(agreement.get(domain, "-")),
        )
        for domain, choices in chosen.items()
    ]
