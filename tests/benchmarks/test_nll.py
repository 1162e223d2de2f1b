"""Variants score the same records in turn, and their differences are paired."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.nll import MEAN, Scores, compare, measure, table, validation_examples
from benchmarks.serving.asking import Score
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import ConfigError
from tests.tiny import write_records
from training.data.encoding import Example

EXAMPLES = [Example(f"e{i}", (5, 6, 7 + i), tuple(range(20, 24 + i))) for i in range(4)]


def test_a_directory_without_records_is_refused(tmp_path: Path, tiny_base: BaseModel) -> None:
    tokenizer = tiny_base.chat_tokenizer()
    with pytest.raises(ConfigError, match="has no directory of a domain"):
        validation_examples(tmp_path, tokenizer, 2, 256)
    write_records(tmp_path / "chat" / "train.jsonl", [("a", "b")])
    with pytest.raises(ConfigError, match=r"'chat' has no validation record.*validation\.jsonl"):
        validation_examples(tmp_path, tokenizer, 2, 256)


def test_variants_take_turns_record_by_record(tiny_directory: Path, data: Path) -> None:
    engines = {
        name: StepEngine(
            load_base(tiny_directory, quantization="none", device="cpu"), None, EngineConfig(max_batch_size=1)
        )
        for name in ("a", "b")
    }
    examples = validation_examples(data, engines["a"].base.chat_tokenizer(), 3, 256)
    found = measure(engines, examples)
    for domain, scores in found.items():
        assert [len(each) for each in scores.scores.values()] == [3, 3]
        assert scores.nll("a") == scores.nll("b")
        assert scores.examples == examples[domain]


def scores_of(less: float) -> Scores:
    """Very different records; the second variant gives each token `less` nats fewer."""
    return Scores(
        EXAMPLES,
        {
            "nf4": [Score(10.0 * i, 1.0) for i in range(4)],
            "fast": [Score(10.0 * i - less * len(e.response), 0.5) for i, e in enumerate(EXAMPLES)],
        },
        {"nf4": 10.0, "fast": 20.0},
    )


@pytest.mark.parametrize(("less", "verdict"), [(0.004, " met "), (0.006, " not met ")])
def test_differences_are_paired_and_held_against_the_rule(less: float, verdict: str) -> None:
    reference, fast = compare({"chat": scores_of(less), "math": scores_of(less)}, ["nf4", "fast"])
    assert reference["difference"][MEAN]["nats"] == 0.0
    for domain in ("chat", "math", MEAN):
        assert fast["difference"][domain]["nats"] == pytest.approx(-less)
        assert fast["difference"][domain]["interval"] == pytest.approx((-less, -less)), "pairs have no noise"
    assert fast["tokens_per_second"] == 2 * reference["tokens_per_second"]
    assert fast["decoded_per_second"].median == 20.0
    lines = table([document | {"step_megabytes": 1} for document in (reference, fast)]).splitlines()
    assert verdict in lines[-1]
    assert not any(verdict in line for line in lines[:-1])
