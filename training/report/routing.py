"""The report's sections on the router: how its training went, and what prompts take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.evaluation.intervals import Share
from training.evaluation.router import Choices, analyse
from training.report import plots
from training.report.page import Figure, Section, Table, nats
from training.report.records import RunRecords

YARDSTICKS = ("base", "ungated", "best_single", "oracle")
"""Held-out losses that no training of the router changes."""


def router_training(records: RunRecords) -> Section:
    title, router = "Router training", records.router
    history = router.metrics.get("history") if router is not None else None
    if router is None or history is None:
        return Section(title, command="brainstacks-train router")
    epochs = [point["epoch"] for point in history]
    routed = [point["held_out_nll_routed"] for point in history]
    constant = {name: router.metrics[f"held_out_nll_{name}"] for name in YARDSTICKS}
    curves = [plots.Line("routed", epochs, routed, marked=True)]
    curves += [
        plots.Line(name.replace("_", " "), [epochs[0], epochs[-1]], [loss, loss], style=i)
        for i, (name, loss) in enumerate(constant.items(), 1)
    ]
    entropy = plots.Line(
        "held-out BCE", epochs, [point["held_out_bce"] for point in history], style=5, marked=True
    )
    caption = (
        "Loss of held-out answers as the router of each epoch composes for them, between the base's, that of "
        "all stacks, of each prompt's best single stack and of the best that was measured; and its own "
        f"loss, the cross-entropy. Epoch {router.metrics['epoch']} was kept."
    )
    svg = plots.lines(
        title, {"nats per answer token": curves, "binary cross-entropy": [entropy]}, "epochs", "loss"
    )
    rows = [
        (str(point["epoch"]), nats(point["held_out_nll_routed"]), nats(point["held_out_bce"]))
        for point in history
    ]
    return Section(
        title,
        [Figure(svg, caption)],
        [Table("Epochs", ("epoch", "held-out routed loss", "held-out BCE"), rows)],
        _older(records),
    )


def _older(records: RunRecords) -> list[str]:
    if not records.unrouted:
        return []
    return [
        f"This router is older than the stacks of {', '.join(records.unrouted)}: it was not trained with "
        "what the registry serves of them, and routed requests leave them out. `brainstacks-train router` "
        "makes another."
    ]


def routing(records: RunRecords) -> Section:
    title = "Routing"
    if records.evaluation is None:
        return Section(title, command="brainstacks-train evaluate")
    found = analyse(records.evaluation)
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
