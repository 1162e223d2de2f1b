"""Entries are the log-softmax of their row, with ranked alternatives, whatever other rows ask for."""

from __future__ import annotations

import math

import pytest
import torch

from brainstacks.engine.sampling.logprobs import most_likely, token_logprobs
from brainstacks.errors import EngineFailure
from brainstacks.tokenizer import ChatTokenizer
from tests.engine.sampled import random_logits
from tests.tiny import END, VOCAB, byte_tokenizer


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_each_row_has_its_own_tokens_logprob_and_best(rows: int) -> None:
    logits = random_logits(rows, VOCAB, seed=4)
    tokens, tops = [i % VOCAB for i in range(rows)], [i % 5 for i in range(rows)]
    found = token_logprobs(None, logits, tokens, tops)
    assert [entry.token_id for entry in found] == tokens
    for entry, row, top in zip(found, logits.log_softmax(-1), tops, strict=True):
        values, ids = row.topk(top)
        assert entry.logprob == float(row[entry.token_id])
        assert entry.rank == 1 + sum(value > entry.logprob for value in row.tolist())
        assert [t.token_id for t in entry.top] == ids.tolist()
        assert [t.logprob for t in entry.top] == values.tolist()
        assert all(t.top == () for t in entry.top)


def test_texts_and_bytes_are_the_tokenizers() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 0xC3], logits[0, END] = 9.0, 8.0
    tokenizer = ChatTokenizer(byte_tokenizer(), (END,))
    (entry,) = token_logprobs(tokenizer, logits, [ord("a")], [2])
    assert (entry.text, entry.token_bytes) == ("a", b"a")
    assert [(t.text, t.token_bytes) for t in entry.top] == [
        ("\ufffd", b"\xc3"),
        ("<|im_end|>", b"<|im_end|>"),
    ]


def test_more_alternatives_than_tokens_are_all_of_them() -> None:
    (entry,) = token_logprobs(None, random_logits(1, 6, seed=4), [0], [20])
    assert sorted(t.token_id for t in entry.top) == list(range(6))


def test_no_rows_are_no_entries() -> None:
    assert token_logprobs(None, random_logits(0, VOCAB, seed=4), [], []) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_and_no_entry(value: float) -> None:
    logits = random_logits(3, VOCAB, seed=4)
    logits[1, 7] = value
    with pytest.raises(EngineFailure, match="not finite"):
        token_logprobs(None, logits, [0, 0, 0], [1, 1, 1])


@pytest.mark.parametrize("width", [1, 4, 6, 9])
def test_of_equal_scores_the_lowest_id_ranks_first(width: int) -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 3.0, 1.0, 3.0]])
    found = most_likely(scores, width)[0].tolist()
    if width == 1:  # which of the three, is not said
        assert found[0] in (1, 3, 5)
    else:
        assert found[:3] == [1, 3, 5]
        assert len(found) == min(width, 6)
    if width >= 6:
        assert found == [1, 3, 5, 2, 4, 0]
