"""The validation records under what a registry serves: their losses in every mode.

The oracle is measured on the first records of each domain alone, because it costs all 2^D combinations;
every other mode is told for those records too, so that like is compared with like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from training.data.batches import TOKENS, within_budget
from training.data.domains import DomainData
from training.data.encoding import Example, encode
from training.evaluation.evaluation import COMBINATION, MODES, ORACLE, Evaluation, RecordResult
from training.progress import tracked
from training.recipe.settings import RouterRecipe
from training.router.outcomes import Outcome, measure
from training.router.stacked_base import StackedBase, Weights, routed_weights
from training.runs.processes import ALONE, Processes


def load_served(
    base: BaseModel, registry: Registry, processes: Processes = ALONE
) -> tuple[StackedBase, Router | None]:
    """`base` with the active stacks of `registry`, and its router; None where signatures alone route.

    Args:
        processes: that measure, see `StackedBase`.

    Raises:
        ConfigError: the registry has no stacks, or neither a router nor a signature.
    """
    stacked = StackedBase.load(base, registry, processes)
    history = registry.snapshot().router
    if not stacked.digests or (history is None and not stacked.signatures):
        raise ConfigError(
            "the registry has no stacks, or neither a router nor a signature; run "
            "`brainstacks-train curriculum` and `router`"
        )
    return stacked, None if history is None else Router.load(
        registry.blob_path(history.current.digest), stacked.base
    )


def evaluate(
    stacked: StackedBase,
    router: Router | None,
    data: Mapping[str, DomainData],
    limit: int | None = None,
    oracle_limit: int = 16,
    *,
    router_digest: str | None,
    max_tokens: int,
    search: RouterRecipe,
    report: Callable[[str], None] = print,
) -> Evaluation:
    """Measure the validation records of every domain of `data`; one without a stack is its own base.

    Args:
        limit: most records per domain; None takes all.
        oracle_limit: the oracle is measured on the first so many of them.
        router_digest: of the router's file.
        max_tokens: of prompt and answer; a longer answer is cut.
        search: whose `soft_levels` and `min_gain` the oracle's search takes.

    Raises:
        ConfigError: a domain has no validation record that fits `max_tokens`.
    """
    measured = Evaluation((), dict(stacked.digests), router_digest)
    every = list(validation_examples(stacked, data, limit, max_tokens).items())
    with tracked(every, "evaluating", "domains") as domains:
        for domain, examples in domains:
            pairs = [(domain, e) for e in examples[:oracle_limit]]
            oracles = measure(stacked, pairs, search.soft_levels, search.min_gain)
            found = replace(measured, records=_records(stacked, router, domain, examples, oracles))
            report(f"{domain}: " + ", ".join(f"{mode} {nll:.4f}" for mode, nll in found.nll[domain].items()))
            measured = replace(measured, records=measured.records + found.records)
    return measured


def validation_examples(
    stacked: StackedBase, data: Mapping[str, DomainData], limit: int | None, max_tokens: int
) -> dict[str, list[Example]]:
    """Domain -> its first `limit` validation records. Raises ConfigError: a domain has none that fits."""
    found = {
        domain: encode(split.validation[:limit], stacked.tokenizer, max_tokens)
        for domain, split in data.items()
    }
    empty = [domain for domain, examples in found.items() if not examples]
    if empty:
        raise ConfigError(
            f"no validation record of {', '.join(empty)} fits {max_tokens} tokens; give more data, or tokens"
        )
    return found


def route(stacked: StackedBase, router: Router | None, examples: Sequence[Example]) -> list[Weights]:
    """What serving applies to each prompt."""
    found: list[Mapping[str, float]] = [{}] * len(examples)
    reader, batches = stacked.reader(router), within_budget([len(e.prompt) for e in examples], TOKENS)

    def probabilities(rows: Sequence[int]) -> list[Mapping[str, float]]:
        return [r.probabilities for r in reader.read(stacked.base, [examples[i].prompt for i in rows])]

    read = stacked.processes.shared(batches, probabilities, "routing prompts", "batches")
    for rows, theirs in zip(batches, read, strict=True):
        for i, given in zip(rows, theirs, strict=True):
            found[i] = given
    return routed_weights(stacked, router, found)


def _records(
    stacked: StackedBase,
    router: Router | None,
    domain: str,
    examples: Sequence[Example],
    oracles: Sequence[Outcome],
) -> tuple[RecordResult, ...]:
    routed = route(stacked, router, examples)
    rows: dict[str, Sequence[Weights]] = {
        "base": [{}] * len(examples),
        "ungated": [dict.fromkeys(stacked.digests, 1.0)] * len(examples),
        "routed": routed,
        "only-own": [{domain: 1.0} if domain in stacked.digests else {}] * len(examples),
    }
    losses = {mode: stacked.losses(examples, weights) for mode, weights in rows.items()}
    results = []
    for i, example in enumerate(examples):
        nats = {mode: losses[mode][i] for mode in MODES}
        tokens, weights = len(example.response), None
        if i < len(oracles):
            best = oracles[i]
            nats |= {COMBINATION: min(best.losses.values()) * tokens, ORACLE: best.oracle * tokens}
            weights = {d: w for d, w in best.weights.items() if w != 0.0}
        results.append(RecordResult(example.id, domain, tokens, nats, dict(routed[i]), weights))
    return tuple(results)
