"""Answer NLL per domain in four modes: base, ungated, routed, only the domain's own stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from brainstacks.errors import ConfigError
from brainstacks.routing.policy import active_domains, floored
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from training.composition import Composed, Weights
from training.data import Example, by_length, encode, read_jsonl

MODES = ("base", "ungated", "routed", "only-own")


def evaluate_modes(
    base: str,
    quantization: str,
    registry: Registry,
    data: Path,
    limit: int | None = None,
    max_tokens: int = 256,
    report: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Token-weighted mean NLL (nats) of the validation answers.

    Args:
        limit: most validation records per domain; None takes all.

    Returns:
        domain -> mode -> NLL.

    Raises:
        ConfigError: the registry has no stacks or no router.
    """
    composed = Composed.load(base, quantization, registry)
    history = registry.snapshot().router
    if history is None or not composed.digests:
        raise ConfigError(
            "the registry has no router or no stacks; run `brainstacks-train curriculum` and `router`"
        )
    router = Router.load(registry.blob_path(history.current.digest), composed.base)
    results = {}
    for domain in composed.digests:
        examples = encode(
            read_jsonl(data / domain / "validation.jsonl")[:limit], composed.tokenizer, max_tokens
        )
        results[domain] = _modes(composed, router, domain, examples)
        report(f"{domain}: " + ", ".join(f"{mode} {nll:.4f}" for mode, nll in results[domain].items()))
    return results


def _modes(composed: Composed, router: Router, domain: str, examples: Sequence[Example]) -> dict[str, float]:
    sums = dict.fromkeys(MODES, 0.0)
    for batch in by_length(examples, 8):
        rows: dict[str, list[Weights]] = {
            "base": [{}] * len(batch),
            "ungated": [dict.fromkeys(composed.digests, 1.0)] * len(batch),
            "routed": routed_weights(composed, router, batch),
            "only-own": [{domain: 1.0}] * len(batch),
        }
        for mode, weights in rows.items():
            sums[mode] += float(composed.nll(batch, weights).sum())
    tokens = sum(len(e.response) for e in examples)
    return {mode: total / tokens for mode, total in sums.items()}


def routed_weights(composed: Composed, router: Router, batch: Sequence[Example]) -> list[Weights]:
    """The weights that serving would apply to each prompt."""
    applied: list[Weights] = []
    for probabilities in router.probabilities(composed.base, [e.prompt for e in batch]):
        weights = floored(probabilities, router.config.floors)
        active = active_domains(weights, router.config.gate_threshold)
        applied.append({d: weights[d] for d in active})
    return applied


def show(results: dict[str, dict[str, float]], console: Console) -> None:
    """Print the table; the gains are against the base."""
    table = Table(title="Answer NLL on the validation split (nats per token; gain over the base in brackets)")
    table.add_column("domain")
    for mode in MODES:
        table.add_column(mode, justify="right")
    means = {mode: sum(r[mode] for r in results.values()) / len(results) for mode in MODES}
    for name, row in [*results.items(), ("mean", means)]:
        cells = [f"{row[m]:.4f}" + (f" ({row['base'] - row[m]:+.3f})" if m != "base" else "") for m in MODES]
        table.add_row(name, *cells, end_section=name == list(results)[-1])
    console.print(table)
