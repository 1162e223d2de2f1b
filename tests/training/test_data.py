"""Records become examples whose loss is on the response alone."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from brainstacks.errors import ConfigError
from brainstacks.tokenizer import ChatTokenizer
from tests.tiny import END, byte_tokenizer, write_records
from tests.training.examples import example, random_examples
from training.data import IGNORE, Record, by_length, collate, encode, file_digest, read_jsonl, shuffled

TOKENIZER = ChatTokenizer(byte_tokenizer(), (END,))


def test_labels_are_the_next_token_at_the_responses_positions_alone() -> None:
    batch = collate([example([1, 2, 3], [4, 5]), example([6], [7])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    i = IGNORE
    assert batch.labels.tolist() == [[i, i, 4, 5, i], [7, i, i, i, i]]


def test_examples_have_the_prompt_format_of_serving_and_end_with_the_end_of_turn() -> None:
    (made,) = encode([Record("a", "hi", "yes")], TOKENIZER, 100)
    assert list(made.prompt) == TOKENIZER.encode_chat([{"role": "user", "content": "hi"}])
    assert list(made.response) == [*b"yes", END]


def test_a_long_response_is_cut_and_a_prompt_without_room_is_left_out() -> None:
    room = len(TOKENIZER.encode_chat([{"role": "user", "content": "hi"}]))
    made = encode([Record("a", "hi", "x" * 50), Record("b", "h" * 50, "x")], TOKENIZER, room + 8)
    assert [(e.id, len(e.response)) for e in made] == [("a", 8)]
    assert encode([Record("a", "hi", "x" * 50)], TOKENIZER, room + 7) == []


def test_lines_are_read_with_or_without_an_id(tmp_path: Path) -> None:
    path = write_records(tmp_path / "train.jsonl", [("p", "r")])
    path.write_text(path.read_text() + '{"prompt": "q", "response": "s", "source": "ignored"}\n')
    assert read_jsonl(path) == [Record("train-0", "p", "r"), Record("2", "q", "s")]
    assert len(file_digest(path)) == 64


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"prompt": "p"}', "null"])
def test_a_line_that_is_no_record_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = write_records(tmp_path / "train.jsonl", [("p", "r")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=r"train\.jsonl, line 2"):
        read_jsonl(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data file"):
        read_jsonl(tmp_path / "train.jsonl")


def test_evaluation_batches_hold_every_example_once_by_length() -> None:
    examples = random_examples(11)
    batches = by_length(examples, 4)
    flat = [e for batch in batches for e in batch]
    assert sorted(e.id for e in flat) == sorted(e.id for e in examples)
    assert [len(e) for e in flat] == sorted(len(e) for e in examples)
    assert [len(b) for b in batches] == [4, 4, 3]


def test_training_batches_are_full_and_their_order_follows_the_seed() -> None:
    examples = random_examples(20)

    def first(seed: int) -> list[list[str]]:
        return [[e.id for e in batch] for batch in islice(shuffled(examples, 4, seed), 12)]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert all(len(batch) == 4 for batch in first(1))
    epoch = [name for batch in first(1)[:5] for name in batch]
    assert sorted(epoch) == sorted(e.id for e in examples)


def test_fewer_examples_than_a_batch_still_train() -> None:
    examples = random_examples(3)
    assert sorted(e.id for e in next(shuffled(examples, 8, 0))) == ["e0", "e1", "e2"]
