"""What prompts take, counted by hand; the paper's claim asked of the router and of the oracle."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from training.evaluation.evaluation import MODES, SEARCHED, Evaluation, RecordResult
from training.evaluation.intervals import Share
from training.evaluation.router import Transfer, analyse, choices
from training.router.stacked_base import Weights

STACKS = ("chat", "math", "medical")


def result(domain: str, routed: Weights, oracle: Weights | None = None) -> RecordResult:
    nats = dict.fromkeys((*MODES, *SEARCHED) if oracle is not None else MODES, 1.0)
    return RecordResult("r", domain, 1, nats, routed, oracle)


FOUND = Evaluation(
    (
        result("medical", {"chat": 0.5, "math": 1.0}, {"math": 1.0, "chat": 0.4}),
        result("medical", {"math": 0.5, "chat": 0.5, "medical": 0.2}, {"medical": 1.0}),
        result("medical", {"chat": 0.5, "math": 0.5}),
        result("medical", {}),
        result("chat", {"chat": 1.0}, {}),
    ),
    dict.fromkeys(STACKS, "1" * 64),
    None,
)


def test_combinations_are_sets_in_the_curriculums_order_the_most_frequent_first() -> None:
    medical = analyse(FOUND).routed["medical"]
    assert list(medical.combinations.items()) == [
        ("chat+math", Share(2, 4)),
        ("chat+math+medical", Share(1, 4)),
        ("", Share(1, 4)),
    ]


def test_mean_weights_count_a_stack_that_is_off_as_zero() -> None:
    medical = analyse(FOUND).routed["medical"]
    assert medical.mean_weights == pytest.approx({"chat": 1.5 / 4, "math": 2.0 / 4, "medical": 0.2 / 4})


def test_prompts_that_use_others_stacks_and_that_lack_their_own() -> None:
    found = analyse(FOUND).routed
    assert (found["medical"].uses_others, found["medical"].without_own) == (Share(3, 4), Share(3, 4))
    assert (found["chat"].uses_others, found["chat"].without_own) == (Share(0, 1), Share(0, 1))


def test_agreement_is_of_sets_and_only_where_the_oracle_was_measured() -> None:
    found = analyse(FOUND)
    assert found.agreement == {"medical": Share(1, 2), "chat": Share(0, 1)}
    assert found.oracle["chat"].combinations == {"": Share(1, 1)}


def test_the_claim_is_asked_of_router_and_oracle_with_and_without_other_stacks() -> None:
    found = analyse(FOUND)
    assert found.claim("medical", ("chat", "math")) == {
        "router": Share(3, 4),
        "router, no other": Share(2, 4),
        "oracle": Share(1, 2),
        "oracle, no other": Share(1, 2),
    }
    assert found.claim("law", ("chat", "math")) is None, "no such prompts"
    assert found.claim("medical", ("chat", "code")) is None, "no such stack"
    unmeasured = analyse(replace(FOUND, records=FOUND.records[2:4])).claim("medical", ("chat", "math"))
    assert unmeasured == {"router": Share(1, 2), "router, no other": Share(1, 2)}


def test_the_base_alone_is_a_combination_that_takes_nothing() -> None:
    found = choices("chat", [{}, {}], STACKS)
    assert found.taking((), alone=True) == Share(2, 2)
    assert found.taking(("chat",)) == Share(0, 2)


def test_json_has_counts_and_intervals() -> None:
    document = json.loads(json.dumps(analyse(FOUND).to_dict()))
    share = document["routed"]["medical"]["combinations"]["chat+math"]
    assert share["count"] == 2
    assert share["interval"] == pytest.approx(Share(2, 4).interval)
    assert document["paper_claim"]["router"]["count"] == 3
    fewer = replace(FOUND, stacks={"chat": "1" * 64})
    assert json.loads(json.dumps(analyse(fewer).to_dict()))["paper_claim"] is None


def test_the_table_shows_what_is_taken_and_the_claim() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    analyse(FOUND).show(console)
    text = console.export_text()
    assert "chat+math 50%" in text
    assert "router 75%" in text
    assert "paper 97%" in text


def test_a_gain_is_what_a_stack_alone_takes_off_the_base() -> None:
    found = Transfer(
        {"chat": 3.0, "law": 2.0},
        {"chat": {"chat": 2.0, "math": 2.5}, "law": {"chat": 1.0, "math": 2.5}},
        {"chat": {"chat": (0.9, 1.1), "math": (0.4, 0.6)}, "law": {"chat": (0.9, 1.1), "math": (-0.6, -0.4)}},
    )
    assert found.gain("law", "math") == -0.5
    assert found.gain("chat", "math") == 0.5
    assert Transfer.from_dict(json.loads(json.dumps(found.to_dict()))) == found
