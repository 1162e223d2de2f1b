"""The report's sections on what is served: losses by mode, lm-eval's tasks, what single stacks do."""

from __future__ import annotations

from collections.abc import Mapping

from training.evaluation.evaluation import Evaluation
from training.evaluation.intervals import Estimate, Interval
from training.report import plots
from training.report.page import NATS, Figure, Section, Table, nats
from training.report.records import RunRecords

MAKER = "brainstacks-train evaluate"


def evaluation(records: RunRecords) -> Section:
    title, found = "Evaluation", records.evaluation
    if found is None:
        return Section(title, command=MAKER)
    gains = {domain: Estimate(*gain) for domain, gain in found.routed_less_base.items()}
    figures = [
        _means("Mean loss by mode", "the validation records", found),
        Figure(
            plots.estimates("Routed less base", gains, NATS, zero=True),
            "Loss routed less that of the base, with 95% intervals: one that lies left of the line is a gain "
            "that these records can tell from chance.",
        ),
    ]
    tables, text = [_modes("Loss by mode", found)], []
    if found.compared.records:
        count = len(found.compared.records)
        those = f"the {count} records that the best composition was searched for (oracle)"
        figures.append(_means("Mean loss by mode, with the oracle", those, found.compared))
        tables.append(_modes(f"Loss by mode, on {those}", found.compared))
        regret = ", ".join(f"{off:+.1%} off the {mode}" for mode, off in found.relative_regret.items())
        text.append(
            f"On the records where that was searched for, routed is {regret}. For each record by itself, the "
            "combination is the best choice of stacks at 1.0, and the oracle softens weights too."
        )
    return Section(title, figures, tables, text)


def _means(title: str, records: str, found: Evaluation) -> Figure:
    rows = {mode: Estimate(found.mean[mode], found.mean_intervals[mode]) for mode in found.modes}
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


def transfer(records: RunRecords) -> Section:
    title, found = "Transfer", records.transfer
    if found is None:
        return Section(title, command=MAKER)
    domains, stacks = list(found.base), list(next(iter(found.nll.values()), {}))
    gains = [[found.gain(domain, stack) for stack in stacks] for domain in domains]
    numbers = [[f"{gain:+.3f}" for gain in row] for row in gains]
    caption = (
        f"What each stack alone (column) gains over the base on a domain's answers (row), in {NATS}: blue "
        "helps, orange harms, and what is off the diagonal goes to other domains."
    )
    svg = plots.matrix(title, domains, stacks, gains, numbers, "stack", "prompts of")
    rows = [
        (domain, stack, nats(found.base[domain]), nats(loss), _difference(found.gain(domain, stack), bounds))
        for domain, losses in found.nll.items()
        for (stack, loss), bounds in zip(losses.items(), found.gain_intervals[domain].values(), strict=True)
    ]
    columns = ("prompts of", "stack", "base", "with the stack", "gain (95%)")
    return Section(title, [Figure(svg, caption)], [Table("Losses", columns, rows)])


def lm_eval(records: RunRecords) -> Section:
    title, found = "lm-eval", records.lm_eval
    if found is None:
        return Section(title, command=f"{MAKER} --lm-eval TASK")
    results: Mapping[str, Mapping[str, Mapping[str, float]]] = found["results"]
    rows = [
        (task, metric, *(_with_error(tasks[task], metric) for tasks in results.values()))
        for task, metrics in next(iter(results.values())).items()
        for metric in metrics
        if "," in metric and "_stderr," not in metric
    ]
    documents = f"the first {found['limit']} documents" if found["limit"] else "all documents"
    prompts = "in the base's chat template" if found["chat_template"] else "as plain text"
    text = f"Tasks of lm-eval, on {documents} of each, prompts {prompts}; standard errors after the figures."
    return Section(title, tables=[Table("Figures", ("task", "metric", *results), rows, True)], text=[text])


def _with_error(metrics: Mapping[str, float], metric: str) -> str:
    """A figure of lm-eval, which names its standard error like it: `acc,none`, `acc_stderr,none`."""
    error = metrics.get(metric.replace(",", "_stderr,", 1))
    return f"{metrics[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}")
