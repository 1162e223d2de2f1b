"""Batches: labels never cross an example, packed rows compute what solo rows do, and none is ever lost."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
import torch

from brainstacks.errors import ConfigError
from tests.tiny import WINDOW, tiny_model
from tests.training.examples import example, random_examples
from training.data.batches import (
    IGNORE,
    LABEL_COST,
    POOL,
    Row,
    TrainingOrder,
    by_length,
    collate,
    loss_batches,
    micro_batches,
    pack,
    within_budget,
)
from training.data.encoding import Example

I = IGNORE  # noqa: E741


def test_labels_are_the_next_token_at_the_responses_positions_alone() -> None:
    batch = collate([example([1, 2, 3], [4, 5]), example([6], [7])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert batch.labels.tolist() == [[I, I, 4, 5, I], [7, I, I, I, I]]
    assert batch.segments.tolist() == [[0] * 5, [1, 1, -1, -1, -1]]
    assert batch.position_ids is None
    assert batch.examples == 2


def test_a_packed_row_restarts_its_positions_and_labels_nothing_across_examples() -> None:
    batch = collate([[example([1, 2], [3]), example([4], [5, 6])], [example([7], [8])]])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[I, 3, I, 5, 6, I], [8, I, I, I, I, I]]
    assert batch.labelled.tolist() == (batch.labels != I).flatten().nonzero()[:, 0].tolist() == [1, 3, 4, 6]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, -1, -1, -1, -1]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 0, 0, 0]]
    assert batch.examples == 3
    moved = batch.to(torch.device("meta"))
    assert moved.position_ids is not None
    assert {moved.input_ids.device.type, moved.position_ids.device.type} == {"meta"}


def test_rows_of_one_example_each_are_those_examples() -> None:
    examples = random_examples(5)
    rows, plain = collate([[e] for e in examples]), collate(examples)
    assert rows.position_ids is None
    assert torch.equal(rows.labels, plain.labels)
    assert torch.equal(rows.segments, plain.segments)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_a_packed_row_are_those_of_its_examples_alone(family: str, attention: str) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    # Longer than the sliding window, so that a window that looked past the start would show.
    long = example(range(40, 40 + WINDOW + 3), range(60, 66))
    rows = [[long, example([1], [2]), *random_examples(3)], [*random_examples(2, seed=1)]]
    batch = collate(rows)
    with torch.no_grad():
        packed = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        for number, one in enumerate(e for row in rows for e in row):
            alone = model(input_ids=torch.tensor([[*one.prompt, *one.response]]), use_cache=False).logits
            torch.testing.assert_close(packed[batch.segments == number], alone[0], atol=1e-5, rtol=1e-5)


def test_evaluation_batches_hold_every_example_once_by_length() -> None:
    examples = random_examples(11)
    batches = by_length(examples, 4)
    flat = [e for batch in batches for e in batch]
    assert sorted(e.id for e in flat) == sorted(e.id for e in examples)
    assert [len(e) for e in flat] == sorted(len(e) for e in examples)
    assert [len(b) for b in batches] == [4, 4, 3]


@pytest.mark.parametrize("tokens", [1, 9, 20, 1000])
def test_batches_hold_every_row_once_and_keep_within_the_budget(tokens: int) -> None:
    lengths = [5, 3, 9, 9, 1, 4, 12, 3]
    batches = within_budget(lengths, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    widths = [lengths[i] for batch in batches for i in batch]
    assert widths == sorted(widths), "like lengths together"


def test_rows_that_fit_share_a_batch() -> None:
    assert within_budget([4, 2, 2, 4], 8) == [[1, 2], [0, 3]]
    assert within_budget([4, 2, 2, 4], 16) == [[1, 2, 0, 3]]
    assert within_budget([], 8) == []


@pytest.mark.parametrize("tokens", [1, 40, 100, 1000])
def test_batches_that_measure_a_loss_have_few_labels_as_well_as_few_tokens(tokens: int) -> None:
    examples = [*random_examples(12), example(range(30), [1]), example([1], range(30))]
    batches = loss_batches(examples, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(examples)))
    for rows in batches:
        batch = collate([examples[i] for i in rows])
        assert len(rows) == 1 or batch.input_ids.numel() <= tokens
        assert len(rows) == 1 or int((batch.labels != IGNORE).sum()) <= tokens / LABEL_COST


@pytest.mark.parametrize(("rows", "count"), [(8, 4), (7, 4), (3, 4), (1, 1), (9, 2)])
def test_a_step_is_split_into_even_parts_in_order_and_none_is_empty(rows: int, count: int) -> None:
    parts = micro_batches(rows, count)
    assert [row for part in parts for row in part] == list(range(rows))
    sizes = {len(part) for part in parts}
    assert len(parts) == min(rows, count)
    assert 0 < max(sizes) <= min(sizes) + 1


# --- the order of training -----------------------------------------------------------------------


def epochs(order: TrainingOrder, count: int, examples: int) -> list[list[list[Row]]]:
    """The first `count` epochs: batches until every example was seen once."""
    result, i = [], 0
    for _ in range(count):
        batches, seen = [], 0
        while seen < examples:
            batches.append(order.batch(i))
            seen += sum(len(row) for row in batches[-1])
            i += 1
        result.append(batches)
    return result


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    ("count", "batch_size"), [(100, 4), (4 * POOL + 1, 4), (9, 8), (3, 8), (1, 1), (8, 1)]
)
def test_every_example_comes_once_an_epoch_in_batches_that_fit(
    packing: bool, count: int, batch_size: int
) -> None:
    examples = random_examples(count)
    order = TrainingOrder(examples, batch_size, seed=0, packing=packing, max_tokens=24)
    for batches in epochs(order, 3, count):
        assert Counter(e.id for b in batches for row in b for e in row) == Counter(e.id for e in examples)
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= min(batch_size, min(sizes) + 1)
        for row in (row for batch in batches for row in batch):
            assert sum(map(len, row)) <= 24 if packing else len(row) == 1


@pytest.mark.parametrize("packing", [False, True])
def test_any_batch_is_the_same_however_one_gets_there(packing: bool) -> None:
    examples = random_examples(50)

    def order(seed: int = 3) -> TrainingOrder:
        return TrainingOrder(examples, 4, seed, packing, max_tokens=24)

    straight = order()
    batches = [straight.batch(i) for i in range(40)]
    assert order().batch(39) == batches[39]
    jumping, places = order(), list(range(40))
    random.Random(0).shuffle(places)
    assert [jumping.batch(i) for i in places] == [batches[i] for i in places]
    other = order(seed=4)
    assert [other.batch(i) for i in range(40)] != batches


def test_each_epoch_has_an_order_of_its_own() -> None:
    one, two = epochs(TrainingOrder(random_examples(40), 4, 0, False, 24), 2, 40)
    assert one != two


def test_examples_of_like_length_share_a_batch() -> None:
    (batches,) = epochs(TrainingOrder(random_examples(4 * POOL), 4, 0, False, 24), 1, 4 * POOL)
    spans = sorted((min(len(r[0]) for r in b), max(len(r[0]) for r in b)) for b in batches)
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))


@pytest.mark.parametrize("packing", [False, True])
def test_an_order_of_nothing_is_refused(packing: bool) -> None:
    with pytest.raises(ConfigError, match="no record to train on fits 24 tokens"):
        TrainingOrder([], 4, 0, packing, max_tokens=24)


def test_packing_is_first_fit_decreasing() -> None:
    def of(length: int) -> Example:
        return example([0], [1] * (length - 1), str(length))

    rows = pack([of(n) for n in (3, 7, 2, 5, 6, 4, 12)], 10)
    assert [[len(e) for e in row] for row in rows] == [[12], [7, 3], [6, 4], [5, 2]]


def test_packed_rows_are_nearly_full() -> None:
    examples = random_examples(64)
    (batches,) = epochs(TrainingOrder(examples, 4, 0, True, 48), 1, 64)
    assert sum(len(batch) for batch in batches) <= 1 + 1.1 * sum(map(len, examples)) / 48
