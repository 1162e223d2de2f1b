"""Figures of downstream tasks follow from the scores of their documents, and come back from JSON."""

from __future__ import annotations

import json

import pytest

from training.evaluation.downstream import Downstream, TaskScores

RIGHT = {"base": [0.0, 0.0, 1.0, 0.0] * 10, "routed": [1.0, 0.0, 1.0, 0.0] * 10}


def scores(**changes: object) -> TaskScores:
    facts = {
        "task": "strategyqa",
        "metric": "acc",
        "domain": "reasoning",
        "source": "strategyqa.jsonl",
        "constant": 0.75,
        "scores": RIGHT,
        **changes,
    }
    return TaskScores(**facts)  # type: ignore[arg-type]


def test_a_difference_is_paired_by_document() -> None:
    found = scores()
    assert (found.shares["base"].count, found.shares["routed"].count) == (10, 20)
    difference = found.less_base["routed"]
    assert difference.value == 0.25
    low, high = difference.interval
    assert 0.1 < low < 0.25 < high < 0.4
    same = scores(scores={**RIGHT, "own": RIGHT["base"]}).less_base["own"]
    assert (same.value, same.interval) == (0.0, (0.0, 0.0)), "not that of independent shares"


def test_without_the_base_there_is_nothing_to_compare_with() -> None:
    assert scores(scores={"routed": RIGHT["routed"]}).less_base == {}


def test_what_is_written_is_read_again() -> None:
    found = Downstream({"reasoning": "d" * 64}, "e" * 64, (scores(),), {"pubmedqa": "no documents"})
    document = json.loads(json.dumps({"machine": {}, **found.to_dict()}))
    assert document["tasks"][0]["shares"]["routed"]["value"] == 0.5
    read = Downstream.from_dict(document)
    assert (read.stacks, read.router) == (found.stacks, found.router)
    assert read.rows() == found.rows()
    assert read.notes() == found.notes()


def test_a_mode_that_a_task_has_not_is_a_dash() -> None:
    other = scores(task="gsm8k", constant=None, scores={"base": [0.0], "own": [1.0]})
    header, body = Downstream({}, None, (scores(), other), {}).rows()
    assert header == ["task", "base", "routed", "own"]
    assert body[0][3] == body[2][2] == "-"
    assert body[1][1] == ""


@pytest.mark.parametrize(("right", "said"), [([0.0, 0.0], True), ([0.0, 1.0], False)])
def test_a_base_that_has_none_right_is_said(right: list[float], said: bool) -> None:
    notes = Downstream({}, None, (scores(scores={"base": right}),), {}).notes()
    assert ("the base has none right" in notes[0]) == said
    assert "75.0%" in notes[0]
