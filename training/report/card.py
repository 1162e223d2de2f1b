"""The card of a registry, with what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping

from brainstacks.errors import ConfigError
from brainstacks.stacks.card import card as registry_card
from brainstacks.stacks.card import row
from brainstacks.stacks.registry import Registry
from training.evaluation.downstream import Downstream
from training.evaluation.evaluation import MODES, Evaluation


def card(
    registry: Registry,
    evaluation: Evaluation | None = None,
    licences: Mapping[str, str] | None = None,
    downstream: Downstream | None = None,
) -> str:
    """Recipe, seed, data, losses and licences of every active version.

    Args:
        licences: domain -> the licence of its data, where its file tells none.

    Raises:
        ConfigError: `evaluation` or `downstream` is of other stacks or another router; a stack does not say
            what its data's licence is.
    """
    manifest = registry.snapshot()
    for found, command in (
        (evaluation, "brainstacks-train evaluate"),
        (downstream, "python -m benchmarks.downstream"),
    ):
        if found is not None and (found.stacks, found.router) != manifest.serving:
            raise ConfigError(
                f"what `{command}` wrote is of other stacks, or another router, than the registry has; give "
                "that command again"
            )
    lines = ["# Model card", "", *registry_card(registry, licences)]
    if evaluation is not None:
        lines += ["## Answer NLL on the validation split (nats per token)", "", *table(evaluation), ""]
    if downstream is not None:
        lines += ["## Downstream tasks (share of documents answered right)", "", *_tasks(downstream), ""]
    return "\n".join(lines)


def table(evaluation: Evaluation) -> list[str]:
    """Markdown rows: a domain each, and the mean."""
    losses = [*evaluation.nll.items(), ("**mean**", evaluation.mean)]
    body = [row(name, *(f"{loss[mode]:.3f}" for mode in MODES)) for name, loss in losses]
    return [row("domain", *MODES), row(*["---"] * (len(MODES) + 1)), *body]


def _tasks(downstream: Downstream) -> list[str]:
    header, body = downstream.rows()
    rows = [row(*header), row(*["---"] * len(header)), *(row(*cells) for cells in body)]
    return [*rows, "", *(f"- {note}" for note in downstream.notes())]
