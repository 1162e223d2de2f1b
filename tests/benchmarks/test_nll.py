"""Answers are scored through the engine as training scores them, and differences are paired."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.nll import MEAN, Scores, compare, measure, table
from benchmarks.serving.answer_scoring import Score, score, validation_examples
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import ConfigError, ContextTooLong
from tests.tiny import write_records
from training.data.encoding import Example
from training.rounds.objective import mean_nll

EXAMPLES = [Example(f"e{i}", (5, 6, 7 + i), tuple(range(20, 24 + i))) for i in range(4)]


def test_an_answer_has_the_nll_that_training_gives_it(
    tiny_directory: Path, tiny_base: BaseModel, data: Path
) -> None:
    engine = StepEngine(tiny_base, None, EngineConfig(prefix_caching=False))
    plain = load_base(tiny_directory, quantization="none", device="cpu", dtype=torch.float32)
    for examples in validation_examples(data, tiny_base.chat_tokenizer(), 2, 256).values():
        assert len(examples) == 2
        for example in examples:
            expected = mean_nll(plain.model, engine.hooks, [example])
            assert score(engine, example).nats / len(example.response) == pytest.approx(expected, abs=1e-5)


def test_what_the_engine_refuses_is_raised(tiny_base: BaseModel) -> None:
    engine = StepEngine(tiny_base, None, EngineConfig(max_context=6))
    with pytest.raises(ContextTooLong):
        score(engine, EXAMPLES[3])


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
