"""Train the meta-router on measured outcomes (paper, section 5; method 6)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.config import MetaRouterConfig
from brainstacks.errors import ConfigError
from brainstacks.routing.features import pad_features
from brainstacks.routing.meta_router import MetaRouter
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import RouterMetadata
from brainstacks.stacks.tensors import save_router
from training.data.domains import DomainData
from training.data.encoding import Example
from training.recipe.recipe import Recipe
from training.recipe.settings import RouterRecipe
from training.rounds.compute import load_to_measure
from training.rounds.device import joined
from training.router.judge import Judge
from training.router.outcome_file import measured_in
from training.router.outcomes import Outcome, measure_all
from training.router.prompts import RouterPrompts, prompt_features, router_prompts
from training.router.stacked_base import StackedBase, name_of
from training.runs.directory import RunDirectory
from training.runs.paths import RunPaths
from training.runs.processes import Processes
from training.runs.provenance import data_identity, tool_versions
from training.runs.signals import StopRequest

Report = Callable[[str], None]


def train_router(
    recipe: Recipe,
    data: Mapping[str, DomainData],
    registry: Registry,
    path: Path,
    report: Report = print,
    device: str = "auto",
) -> None:
    """Measure outcomes, train, and publish the router.

    Args:
        path: the run's directory; outcomes that it holds are not measured again.
        device: to measure on, see `training.rounds.device.joined`; the router trains on the CPU.

    Raises:
        ConfigError: the registry has no stacks, or one of a domain without data; a domain has too few
            prompts; a loss is not finite; the run is going on, trained on other splits, or holds outcomes of
            other settings.
        Interrupted: a signal came while outcomes were measured; the same command goes on.
        StorageFull: no room; what was measured is kept, and the same command goes on.
    """
    run = RunDirectory(path)
    with ExitStack() as resources:
        with joined(device) as processes:
            report = processes.reporting(report)
            processes.on_first(lambda: resources.enter_context(run))
            processes.check_same("data", data_identity(data))
            processes.on_first(lambda: run.check_splits(recipe.data, data))
            begun = processes.first(lambda: measured_in(run.outcomes) or run.compute())
            stacked = StackedBase.load(load_to_measure(recipe, begun, report, processes), registry)
            processes.check_same("stacks", dict(stacked.digests))
            prompts = _prompts(recipe, data, stacked, report)
            train, held_out = _measured(recipe, stacked, prompts, run, report, processes)
        if not processes.is_first:  # the network is small: one process trains it
            return
        metadata = _metadata(recipe, stacked, data)
        dtype = getattr(torch, recipe.stack.dtype)
        unmeasured = {d: found.unmeasured for d, found in prompts.items()}
        network, metrics = fit(metadata, stacked, train, unmeasured, held_out, recipe.router, dtype, report)
        metrics["train_prompts_unseen"] = sum(found.unseen for found in prompts.values())
        metrics["left_out_prompts"] = sum(found.left_out for found in prompts.values())
        tensors = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
        save_router(run.router, dataclasses.replace(metadata, metrics=metrics), tensors)
        published = registry.publish_router(run.router)
        report(f"router: version {published.version}, digest {published.digest[:12]}")


def _prompts(
    recipe: Recipe, data: Mapping[str, DomainData], stacked: StackedBase, report: Report
) -> dict[str, RouterPrompts]:
    """Of every domain that has a stack."""
    domains = tuple(stacked.digests)
    if not domains or not set(domains) <= set(data):
        raise ConfigError(
            f"the registry has stacks of {', '.join(domains) or 'no domain'}, the recipe data of "
            f"{', '.join(data)}; a router needs stacks, and data of each one's domain"
        )
    prompts = router_prompts({d: data[d] for d in domains}, recipe.router, stacked.tokenizer)
    for domain, found in prompts.items():
        report(
            f"{domain}: {len(found.train)} prompts ({found.unseen} of them no stack trained on), "
            f"{len(found.held_out)} held out; {found.left_out} left out, with no room for an answer"
        )
    return prompts


def _measured(
    recipe: Recipe,
    stacked: StackedBase,
    prompts: Mapping[str, RouterPrompts],
    run: RunPaths,
    report: Report,
    processes: Processes,
) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes of the prompts that train, and of those held out."""
    pairs = [(d, e) for d, found in prompts.items() for e in (*found.train, *found.held_out)]
    random.Random(recipe.router.seed).shuffle(pairs)  # a partial run is balanced over the domains
    levels, min_gain = recipe.router.soft_levels, recipe.router.min_gain
    with StopRequest() as stop:
        outcomes = measure_all(stacked, pairs, run.outcomes, levels, min_gain, report, stop, processes)
    held = {(d, e) for d, found in prompts.items() for e in found.held_out}
    train = [o for o in outcomes if (o.domain, o.example) not in held]
    return train, [o for o in outcomes if (o.domain, o.example) in held]


def _metadata(recipe: Recipe, stacked: StackedBase, data: Mapping[str, DomainData]) -> RouterMetadata:
    settings, domains = recipe.router, tuple(stacked.digests)
    return RouterMetadata(
        config=settings.config(domains, stacked.base.identity.hidden_size),
        stacks=dict(stacked.digests),
        base=stacked.base.identity.ref,
        hyperparameters={
            **dataclasses.asdict(settings),
            "quantization": recipe.quantization,
            "compute": stacked.base.dtype_name,
        },
        data=tuple(source for d in domains for source in data[d].sources),
        seed=settings.seed,
        tool_versions=tool_versions(),
        description=f"Sigmoid meta-router: of each domain, {settings.prompts} prompts with measured outcomes "
        f"of all combinations of stacks, and up to {settings.unmeasured} with their mean",
    )


def targets(outcomes: Sequence[Outcome], config: MetaRouterConfig, recipe: RouterRecipe) -> Tensor:
    """(1 - prior) * measured weight + prior * label, per domain -> [N, D] float32."""
    prior = recipe.label_prior
    return torch.tensor(
        [
            [(1 - prior) * o.weights[d] + prior * float(d == o.domain) for d in config.domains]
            for o in outcomes
        ]
    )


def corner_losses(outcomes: Sequence[Outcome], config: MetaRouterConfig) -> Tensor:
    """What was measured with each domain off (0) or on (1) -> [N, 2, ..., 2] float32, an axis per domain."""
    chosen = itertools.product((False, True), repeat=len(config.domains))
    names = [name_of(itertools.compress(config.domains, on)) for on in chosen]
    losses = torch.tensor([[o.losses[name] for name in names] for o in outcomes])
    return losses.reshape(len(outcomes), *[2] * len(config.domains))


def expected_nll(probabilities: Tensor, corners: Tensor) -> Tensor:
    """E[NLL] when each domain is on with its probability, independently: [B, D], [B, 2, ..., 2] -> [B].

    Multilinear in the probabilities. The NLL is close to convex in a stack's weight, so that this bounds what
    the probabilities compose as weights, and it costs no forward.
    """
    for p in probabilities.unbind(-1):
        p = p.reshape(-1, *[1] * (corners.ndim - 2))
        corners = (1 - p) * corners[:, 0] + p * corners[:, 1]
    return corners


def loss(logits: Tensor, wanted: Tensor, corners: Tensor, recipe: RouterRecipe) -> Tensor:
    """BCE + c * mean (m - |p - 0.5|)+ + n * mean E[NLL]; [B, D] twice and [B, 2, ..., 2] -> a scalar.

    BCE asks for the best weight of every domain alike; the last term tells what missing it costs.
    """
    p = logits.sigmoid()
    margin = (recipe.margin - (p - 0.5).abs()).clamp(min=0).mean()
    bce = F.binary_cross_entropy_with_logits(logits, wanted)
    nll = expected_nll(p, corners).mean()
    return bce + recipe.margin_coefficient * margin + recipe.nll_coefficient * nll


def fit(
    metadata: RouterMetadata,
    stacked: StackedBase,
    train: Sequence[Outcome],
    unmeasured: Mapping[str, Sequence[Example]],
    held_out: Sequence[Outcome],
    recipe: RouterRecipe,
    dtype: torch.dtype = torch.float32,
    report: Report = print,
) -> tuple[MetaRouter, dict[str, Any]]:
    """Train on `train`, on the CPU; keep the epoch whose routing composes the lowest held-out NLL.

    Args:
        unmeasured: domain -> further examples, for which the mean of its outcomes in `train` stands.
        dtype: of the router's file; an epoch is judged as it would be read from there.

    Returns:
        The network of that epoch, in eval mode, and the metrics for the router's file; `history` among
        them has every epoch's.

    Raises:
        ConfigError: the training diverged.
    """
    torch.manual_seed(recipe.seed)
    network = MetaRouter(metadata.config)
    judge = Judge(metadata, stacked, held_out, targets(held_out, metadata.config, recipe), dtype)
    dataset = _dataset(metadata.config, stacked, train, unmeasured, recipe)
    epochs = (judge.judged(n, network) for n in _epochs(network, dataset, recipe))
    best = next(epochs)
    report(judge.told(best))
    history = [best.point()]
    for epoch in epochs:
        report(judge.told(epoch))
        history.append(epoch.point())
        if epoch.routed < best.routed:
            best = epoch
        elif epoch.number - best.number >= recipe.patience:
            break
    measured = (*train, *held_out)
    return best.router.network, {
        **judge.metrics(best),
        "greedy_as_good": fmean(o.greedy_cost <= recipe.min_gain for o in measured),
        "greedy_cost": fmean(o.greedy_cost for o in measured),
        "train_prompts": len(train),
        "unmeasured_prompts": sum(map(len, unmeasured.values())),
        "held_out_prompts": len(held_out),
        "history": history,
    }


@dataclass(frozen=True)
class _Dataset:
    """What a router is trained on: N prompts.

    Attributes:
        features: N of [T, d] float32.
        wanted: [N, D] float32.
        corners: [N, 2, ..., 2] float32.
    """

    features: list[Tensor]
    wanted: Tensor
    corners: Tensor


def _dataset(
    config: MetaRouterConfig,
    stacked: StackedBase,
    train: Sequence[Outcome],
    unmeasured: Mapping[str, Sequence[Example]],
    recipe: RouterRecipe,
) -> _Dataset:
    """Of the measured prompts, and of further ones with the mean of their domain's."""
    wanted, corners = [targets(train, config, recipe)], [corner_losses(train, config)]
    prompts = [o.example.prompt for o in train]
    for domain, examples in unmeasured.items():
        own = [o.domain == domain for o in train]
        prompts += [e.prompt for e in examples]
        for rows in (wanted, corners):
            mean = rows[0][own].mean(dim=0, keepdim=True)
            rows.append(mean.expand(len(examples), *mean.shape[1:]))
    return _Dataset(prompt_features(config, stacked, prompts), torch.cat(wanted), torch.cat(corners))


def _epochs(network: MetaRouter, dataset: _Dataset, recipe: RouterRecipe) -> Iterator[int]:
    """Train `network` epoch by epoch; yields the number of each when it is done, from 1."""
    count = len(dataset.features)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    steps = recipe.epochs * math.ceil(count / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = random.Random(recipe.seed)
    for number in range(1, recipe.epochs + 1):
        network.train()
        order = rng.sample(range(count), count)
        for start in range(0, len(order), recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            logits = network(*pad_features([dataset.features[i] for i in rows]))
            loss(logits, dataset.wanted[rows], dataset.corners[rows], recipe).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        yield number
