"""The prompts that the router learns from, and those that are held out to choose its checkpoint."""

from __future__ import annotations

import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brainstacks.config import MetaRouterConfig
from brainstacks.errors import ConfigError
from brainstacks.routing.features import mixed_hidden_states, pad_prompts
from brainstacks.tokenizer import ChatTokenizer
from training.data.batches import TOKENS, within_budget
from training.data.domains import DomainData
from training.data.encoding import Example, encode
from training.data.records import Record, opening_key
from training.progress import tracked
from training.recipe.settings import RouterRecipe
from training.router.stacked_base import StackedBase


@dataclass(frozen=True)
class RouterPrompts:
    """One domain's examples for the router.

    Attributes:
        train: those that no stack trained on come first: a stack is flattered by its own training data.
        unmeasured: more to train on, with their domain's mean outcome: to know what a domain looks like takes
            more prompts than to know what helps it, and a measurement costs 2^D answers.
        held_out: neither a stack nor the router trains on them or on their prompts.
        unseen: how many of `train` no stack trained on (count).
        left_out: records looked at whose prompt leaves no room for an answer (count).
    """

    train: list[Example]
    unmeasured: list[Example]
    held_out: list[Example]
    unseen: int
    left_out: int


def router_prompts(
    data: Mapping[str, DomainData], recipe: RouterRecipe, tokenizer: ChatTokenizer
) -> dict[str, RouterPrompts]:
    """Some records of each domain are held out and others trained on: the router's own, then selection's.

    Where these are too few, training records of the stacks are trained on as well. A question that several
    domains ask is held out in none of them where some stack trains on it, and else trained on in none.

    Raises:
        ConfigError: none is left to train on, or none to hold out.
    """
    trained_on = {opening_key(record) for domain in data.values() for record in domain.train}
    candidates = {name: _candidates(domain, recipe, tokenizer) for name, domain in data.items()}
    held_out = {name: found.held_out(trained_on, recipe.held_out) for name, found in candidates.items()}
    asked = {candidates[name].keys[e.id] for name, held in held_out.items() for e in held}
    return {name: found.prompts(held_out[name], asked, recipe) for name, found in candidates.items()}


@dataclass(frozen=True)
class _Candidates:
    """Of one domain.

    Attributes:
        unseen, seen: examples that no stack trained on, and that its stack did; most wanted first.
        keys: id -> `opening_key` of each example's record.
        left_out: records whose prompt leaves no room for an answer (count).
    """

    name: str
    unseen: list[Example]
    seen: list[Example]
    keys: Mapping[str, str]
    left_out: int

    def held_out(self, trained_on: Container[str], count: int) -> list[Example]:
        return [e for e in self.unseen if self.keys[e.id] not in trained_on][:count]

    def prompts(self, held_out: list[Example], asked: Container[str], recipe: RouterRecipe) -> RouterPrompts:
        """The domain's prompts; those `asked` in what any domain holds out are not trained on."""
        fresh = [e for e in self.unseen if self.keys[e.id] not in asked]
        pool = [*fresh, *(e for e in self.seen if self.keys[e.id] not in asked)]
        train = pool[: recipe.prompts]
        unmeasured = pool[recipe.prompts : recipe.prompts + recipe.unmeasured]
        if not held_out or not train:
            raise ConfigError(
                f"{self.name} gives the router {len(train)} prompts to train on and {len(held_out)} to hold "
                "out; both need at least one: raise data.router or data.selection, or router.max_tokens, of "
                "which a prompt must leave some for its answer"
            )
        return RouterPrompts(train, unmeasured, held_out, min(len(fresh), len(train)), self.left_out)


def _candidates(data: DomainData, recipe: RouterRecipe, tokenizer: ChatTokenizer) -> _Candidates:
    # Encoding is slow and most training records are not needed; some more are, in place of those too long.
    untrained = [*_shuffled(data.router, recipe), *_shuffled(data.selection, recipe)]
    trained_on = _shuffled(data.train, recipe)[: 4 * (recipe.prompts + recipe.unmeasured)]
    unseen = encode(untrained, tokenizer, recipe.max_tokens)
    seen = encode(trained_on, tokenizer, recipe.max_tokens)
    keys = {record.id: opening_key(record) for record in (*untrained, *trained_on)}
    left_out = len(untrained) + len(trained_on) - len(unseen) - len(seen)
    return _Candidates(data.name, unseen, seen, keys, left_out)


def _shuffled(records: Sequence[Record], recipe: RouterRecipe) -> list[Record]:
    return random.Random(recipe.seed).sample(records, len(records))


@torch.no_grad()
def prompt_features(
    config: MetaRouterConfig, stacked: StackedBase, prompts: Sequence[Sequence[int]]
) -> list[Tensor]:
    """[T, d] float32 of each prompt's first `sequence_length` tokens, on the CPU, by the code that serves."""
    found: dict[int, Tensor] = {}
    batches = within_budget([min(len(p), config.sequence_length) for p in prompts], TOKENS)
    with tracked(batches, "reading prompts", "batches") as each:
        for rows in each:
            ids, mask = pad_prompts([prompts[i] for i in rows], config.sequence_length, stacked.base.device)
            mixed = mixed_hidden_states(
                stacked.base.model, ids, mid_weight=config.mid_weight, last_weight=config.last_weight
            )
            found |= {i: x[real] for i, x, real in zip(rows, mixed.cpu(), mask.cpu(), strict=True)}
    return [found[i] for i in range(len(prompts))]
