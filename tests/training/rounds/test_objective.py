"""The loss is the response's NLL, whatever the batch, the padding or the split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from brainstacks.layers.hooks import CompositionHooks, DeltaSource
from brainstacks.layers.projections import find_sites
from tests.tiny import FAMILIES, tiny_model
from tests.training.examples import example, random_examples
from training.data.batches import IGNORE, LABEL_COST, collate
from training.data.encoding import Example
from training.rounds.objective import mean_nll, response_nll, row_sums


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_nll_is_the_cross_entropy_of_the_models_own_logits(family: str) -> None:
    changes: dict[str, Any] = {"final_logit_softcapping": 3.0} if family.startswith("gemma") else {}
    model = tiny_model(family, **changes)
    for one in random_examples(3):
        ids = torch.tensor([[*one.prompt, *one.response]])
        logprobs = model(ids, use_cache=False).logits[0].log_softmax(-1)
        expected = [-float(logprobs[len(one.prompt) - 1 + i, t]) for i, t in enumerate(one.response)]
        found = response_nll(model, collate([one]))
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_the_nll_does_not_depend_on_padding_or_on_what_else_is_in_the_batch() -> None:
    model = tiny_model()
    examples = random_examples(6)
    batch = collate(examples)
    together = row_sums(response_nll(model, batch), batch)
    for one, total in zip(examples, together, strict=True):
        alone = response_nll(model, collate([one])).sum()
        assert float(total) == pytest.approx(float(alone), abs=1e-4)


def test_gradients_do_not_depend_on_how_a_batch_is_split() -> None:
    model = tiny_model()
    head = model.get_output_embeddings().weight.requires_grad_()
    examples = random_examples(6)
    tokens = sum(len(e.response) for e in examples)

    def gradient(*groups: slice) -> torch.Tensor:
        head.grad = None
        for group in groups:
            (response_nll(model, collate(examples[group])).sum() / tokens).backward()
        found: torch.Tensor = head.grad
        return found

    whole = gradient(slice(0, 6))
    torch.testing.assert_close(gradient(slice(0, 1), slice(1, 6)), whole, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradient(slice(0, 2), slice(2, 4), slice(4, 6)), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 60, 4096])
@torch.no_grad()
def test_the_mean_is_over_all_response_tokens_whatever_the_budget(tokens: int) -> None:
    model = tiny_model()
    hooks = CompositionHooks(find_sites(model))
    examples = random_examples(9)
    alone = torch.cat([response_nll(model, collate([one])) for one in examples])
    rows: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda *call: rows.append(len(call[2])))
    found = mean_nll(model, hooks, examples, tokens=tokens)
    handle.remove()
    assert found == pytest.approx(float(alone.double().mean()), abs=1e-5)
    assert found == mean_nll(model, hooks, examples, tokens=tokens), "bit for bit"
    longest = max(len(one.response) for one in examples)
    assert sum(rows) == len(alone)
    assert max(rows) <= max(longest, tokens // LABEL_COST), "logits at a time"


def test_sources_are_asked_for_each_batch_s_own_examples() -> None:
    model = tiny_model()
    examples, seen = random_examples(9), list[str]()

    def sources(group: Sequence[Example]) -> Sequence[DeltaSource]:
        seen.extend(e.id for e in group)
        return ()

    mean_nll(model, CompositionHooks(find_sites(model)), examples, sources, tokens=40)
    assert sorted(seen) == [e.id for e in examples]


def test_the_prompt_has_no_loss() -> None:
    model = tiny_model()
    examples = random_examples(3)
    batch = collate(examples)
    assert response_nll(model, batch).numel() == sum(len(e.response) for e in examples)
    assert int((batch.labels != IGNORE).sum()) == sum(len(e.response) for e in examples)


def test_row_sums_add_up_per_row_rows_without_labels_being_zero() -> None:
    batch = collate([example([1], [3, 4]), example([1, 2], []), example([1], [5, 6])])
    assert row_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), batch).tolist() == [3.0, 0.0, 12.0]
