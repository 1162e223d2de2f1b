"""The curriculum: train each domain, freeze it as one file, publish it (paper, section 3.4).

A domain that the run directory holds already is not trained again, so a run that was stopped goes on
where it was when it is started anew.
"""

from __future__ import annotations

import dataclasses
import platform
import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import StackConfig
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import (
    DataSource,
    Predecessor,
    StackFile,
    StackMetadata,
    check_base,
    inspect_stack,
)
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack_tensors, save_stack
from brainstacks.tokenizer import ChatTokenizer
from training.data import Example, Record, encode, file_digest, read_jsonl
from training.inner_loop import evaluate, train_round
from training.recipe import DomainRecipe, Recipe

Report = Callable[[str], None]


@dataclass(frozen=True)
class Splits:
    """One domain's examples: `selection` chooses snapshots, `validation` only reports."""

    train: list[Example]
    selection: list[Example]
    validation: list[Example]
    sources: tuple[DataSource, ...]


def load_trainable(recipe: Recipe) -> tuple[BaseModel, CompositionHooks, ChatTokenizer]:
    """The recipe's base, open to gradients, with hooks attached."""
    base = load_base(recipe.base, quantization=recipe.quantization, trainable=True)
    hooks = CompositionHooks(base.sites)
    hooks.attach()
    return base, hooks, base.chat_tokenizer()


def selection_split(records: list[Record], count: int) -> tuple[list[Record], list[Record]]:
    """(training, selection): a fixed, random `count` of the records is set aside."""
    order = sorted(records, key=lambda r: r.id)
    random.Random(0).shuffle(order)
    return order[count:], order[:count]


def load_splits(recipe: Recipe, domain: str, data: Path, tokenizer: ChatTokenizer) -> Splits:
    train_file, validation_file = data / domain / "train.jsonl", data / domain / "validation.jsonl"
    records, selection = selection_split(read_jsonl(train_file), recipe.selection)
    validation = read_jsonl(validation_file)
    return Splits(
        encode(records, tokenizer, recipe.max_tokens),
        encode(selection, tokenizer, recipe.max_tokens),
        encode(validation, tokenizer, recipe.max_tokens),
        (
            DataSource(f"{domain}/train.jsonl", file_digest(train_file), len(records) + len(selection)),
            DataSource(f"{domain}/validation.jsonl", file_digest(validation_file), len(validation)),
        ),
    )


def run_curriculum(recipe: Recipe, data: Path, registry: Registry, run: Path, report: Report = print) -> None:
    """Train and publish every domain of `recipe`, in order.

    Args:
        data: directory with `<domain>/{train,validation}.jsonl`.
        run: where finished stack files are kept between starts.
    """
    run.mkdir(parents=True, exist_ok=True)
    base, hooks, tokenizer = load_trainable(recipe)
    bank = StackBank(base.device, base.dtype)
    earlier: list[Predecessor] = []
    for domain in recipe.domains:
        path = run / f"{domain.name}.safetensors"
        if path.is_file():
            file = inspect_stack(path)
            check_base(file.metadata, base.identity.fingerprint, base.identity.dims, base.identity.layers)
            report(f"{domain.name}: already trained, {path.name}")
        else:
            splits = load_splits(recipe, domain.name, data, tokenizer)
            file = train_domain(recipe, domain, splits, base, hooks, bank, tuple(earlier), path, report)
        published = registry.publish(path)
        report(f"{domain.name}: version {published.version}, digest {published.digest[:12]}")
        stack = StackTensors(file.metadata.config, file.metadata.rounds, load_stack_tensors(path))
        if recipe.earlier_stacks == "all":
            bank.add(domain.name, stack)
            earlier.append(Predecessor(domain.name, file.digest))


def train_domain(
    recipe: Recipe,
    domain: DomainRecipe,
    splits: Splits,
    base: BaseModel,
    hooks: CompositionHooks,
    bank: StackBank,
    predecessors: tuple[Predecessor, ...],
    path: Path,
    report: Report = print,
) -> StackFile:
    """Train one round of `domain` on top of the stacks in `bank`, and write it to `path`.

    Raises:
        RuntimeError: the round never beat the zero-delta baseline; nothing is written.
    """
    report(f"{domain.name}: {len(splits.train)} examples")
    config = StackConfig(
        rank=recipe.stack.rank,
        alpha=recipe.stack.alpha,
        experts=recipe.stack.experts,
        top_k=recipe.stack.top_k,
        layers=base.identity.layers,
    )
    frozen = [bank.bind([{p.domain: 1.0 for p in predecessors}])] if predecessors else []
    result = train_round(
        base.model,
        hooks,
        config,
        base.identity.dims,
        splits.train,
        splits.selection,
        recipe.round,
        frozen,
        report,
    )
    if result.tensors is None:
        raise RuntimeError(
            f"{domain.name}: no step beat the zero-delta baseline ({result.baseline:.4f} nats)"
        )
    dtype = torch.bfloat16 if recipe.stack.dtype == "bfloat16" else torch.float32
    tensors = {f"rounds.0.{name}": tensor.to(dtype) for name, tensor in result.tensors.items()}
    alone = StackBank(base.device, base.dtype)
    alone.add(domain.name, StackTensors(config, 1, tensors))
    before = evaluate(base.model, hooks, splits.validation, *frozen)
    after = evaluate(base.model, hooks, splits.validation, *frozen, alone.bind([{domain.name: 1.0}]))
    report(f"{domain.name}: validation {before:.4f} -> {after:.4f} nats")
    metadata = StackMetadata(
        domain=domain.name,
        rounds=1,
        config=config,
        dims=base.identity.dims,
        base=base.identity.ref,
        predecessors=predecessors,
        data=splits.sources,
        hyperparameters={
            **dataclasses.asdict(recipe.round),
            "quantization": recipe.quantization,
            "max_tokens": recipe.max_tokens,
            "earlier_stacks": recipe.earlier_stacks,
        },
        seed=recipe.round.seed,
        losses=(
            {
                "selection_before": result.baseline,
                "selection_after": result.best,
                "validation_before": before,
                "validation_after": after,
                "history": result.history,
            },
        ),
        tool_versions=tool_versions(),
        licence=domain.licence,
        description=domain.description,
    )
    return save_stack(path, metadata, tensors)


def tool_versions() -> dict[str, str]:
    """What produced an artefact, for its header."""
    packages = ("brainstacks", "torch", "transformers", "bitsandbytes")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
