"""Train the meta-router on measured outcomes (paper, section 5; method 6)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.config import MetaRouterConfig
from brainstacks.routing.features import mixed_hidden_states, pad_prompts
from brainstacks.routing.meta_router import MetaRouter
from brainstacks.stacks.artifact import DataSource
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import RouterFile, RouterMetadata
from brainstacks.stacks.tensors import save_router
from training.composition import Composed
from training.data import Example, encode, file_digest, read_jsonl
from training.outcomes import Outcome, measure_all
from training.outer_loop import selection_split, tool_versions
from training.recipe import Recipe, RouterRecipe

Report = Callable[[str], None]


def train_router(recipe: Recipe, data: Path, registry: Registry, run: Path, report: Report = print) -> None:
    """Measure outcomes, train, and publish the router; outcomes that `run` holds are not measured again."""
    composed = Composed.load(recipe.base, recipe.quantization, registry)
    domains = tuple(composed.digests)
    splits = {d: _examples(recipe, d, data, composed) for d in domains}
    pairs = [(d, e) for d in domains for split in splits[d] for e in split]
    random.Random(recipe.router.seed).shuffle(pairs)  # a partial run is balanced over the domains
    outcomes = measure_all(
        composed, pairs, run / "outcomes.jsonl", recipe.router.soft_levels, recipe.router.min_gain, report
    )
    held = {(d, e.id) for d in domains for e in splits[d][1]}
    train = [o for o in outcomes if (o.domain, o.id) not in held]
    held_out = [o for o in outcomes if (o.domain, o.id) in held]
    config = MetaRouterConfig(
        domains=domains,
        token_dim=composed.base.identity.hidden_size,
        hidden_dim=recipe.router.hidden_dim,
        sequence_length=recipe.router.sequence_length,
        floors=recipe.router.floors,
        gate_threshold=recipe.router.gate_threshold,
        dropout=recipe.router.dropout,
    )
    network, metrics = fit(config, composed, train, held_out, recipe.router, report)
    file = _save(recipe, config, network, composed, metrics, data, run / "router.safetensors")
    published = registry.publish_router(run / "router.safetensors")
    report(f"router: version {published.version}, digest {file.digest[:12]}")


def _examples(
    recipe: Recipe, domain: str, data: Path, composed: Composed
) -> tuple[list[Example], list[Example]]:
    """(training, held out) for the router: prompts of the training split whose answer fits.

    Training prompts are those that the stacks trained on; held-out ones come from the records that were
    set aside for choosing snapshots.
    """
    records, selection = selection_split(read_jsonl(data / domain / "train.jsonl"), recipe.selection)
    random.Random(recipe.router.seed).shuffle(records)
    # Encoding is slow and most records are not needed: take them in turn until there are enough.
    limit = recipe.router.max_tokens
    train = encode(records[: 4 * recipe.router.prompts], composed.tokenizer, limit)
    held_out = encode(selection, composed.tokenizer, limit)
    return train[: recipe.router.prompts], held_out[: recipe.router.held_out]


def target(outcome: Outcome, domains: Sequence[str], label_prior: float) -> list[float]:
    """(1 - prior) * measured weight + prior * label, per domain."""
    return [
        (1 - label_prior) * outcome.weights.get(d, 0.0) + label_prior * float(d == outcome.domain)
        for d in domains
    ]


def loss(logits: Tensor, targets: Tensor, recipe: RouterRecipe) -> Tensor:
    """BCE + c * mean (m - |p - 0.5|)+, both [B, D] -> a scalar."""
    margin = (recipe.margin - (logits.sigmoid() - 0.5).abs()).clamp(min=0).mean()
    return F.binary_cross_entropy_with_logits(logits, targets) + recipe.margin_coefficient * margin


def fit(
    config: MetaRouterConfig,
    composed: Composed,
    train: Sequence[Outcome],
    held_out: Sequence[Outcome],
    recipe: RouterRecipe,
    report: Report = print,
) -> tuple[MetaRouter, dict[str, float]]:
    """Train on `train`; the epoch with the lowest held-out BCE is kept."""
    torch.manual_seed(recipe.seed)
    network = MetaRouter(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    steps = recipe.epochs * -(-len(train) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    features = {o.id + o.domain: _features(config, composed, o) for o in (*train, *held_out)}

    def batch(outcomes: Sequence[Outcome]) -> tuple[Tensor, Tensor, Tensor]:
        rows = [features[o.id + o.domain] for o in outcomes]
        x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.tensor([[i < len(r) for i in range(x.shape[1])] for r in rows])
        return x, mask, torch.tensor([target(o, config.domains, recipe.label_prior) for o in outcomes])

    rng = random.Random(recipe.seed)
    best, state = float("inf"), {}
    for epoch in range(recipe.epochs):
        network.train()
        order = list(train)
        rng.shuffle(order)
        for start in range(0, len(order), recipe.batch_size):
            x, mask, targets = batch(order[start : start + recipe.batch_size])
            loss(network(x, mask), targets, recipe).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        network.eval()
        with torch.no_grad():
            x, mask, targets = batch(held_out)
            logits = network(x, mask)
            value = float(F.binary_cross_entropy_with_logits(logits, targets))
            error = float((logits.sigmoid() - targets).abs().mean())
        report(
            f"router epoch {epoch + 1}/{recipe.epochs}: held-out BCE {value:.4f}, |p - target| {error:.3f}"
        )
        if value < best:
            best, state = value, {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    agree = sum(o.greedy == o.best for o in (*train, *held_out)) / (len(train) + len(held_out))
    return network.eval(), {
        "held_out_bce": best,
        "greedy_equals_exhaustive": agree,
        "train_prompts": len(train),
        "held_out_prompts": len(held_out),
    }


@torch.no_grad()
def _features(config: MetaRouterConfig, composed: Composed, outcome: Outcome) -> Tensor:
    """[T, d] float32 of one prompt, by the code that serves."""
    ids, _ = pad_prompts([outcome.prompt], config.sequence_length, composed.base.device)
    mixed = mixed_hidden_states(
        composed.base.model, ids, mid_weight=config.mid_weight, last_weight=config.last_weight
    )
    return mixed[0].cpu()


def _save(
    recipe: Recipe,
    config: MetaRouterConfig,
    network: MetaRouter,
    composed: Composed,
    metrics: dict[str, float],
    data: Path,
    path: Path,
) -> RouterFile:
    dtype = torch.bfloat16 if recipe.stack.dtype == "bfloat16" else torch.float32
    metadata = RouterMetadata(
        config=config,
        stacks=dict(composed.digests),
        base=composed.base.identity.ref,
        hyperparameters={**dataclasses.asdict(recipe.router), "quantization": recipe.quantization},
        data=tuple(
            DataSource(f"{d}/train.jsonl", file_digest(data / d / "train.jsonl"), recipe.router.prompts)
            for d in config.domains
        ),
        seed=recipe.router.seed,
        metrics=metrics,
        tool_versions=tool_versions(),
        description="Sigmoid meta-router trained on measured outcomes over all combinations of domains",
    )
    return save_router(path, metadata, {k: v.to(dtype) for k, v in network.state_dict().items()})
