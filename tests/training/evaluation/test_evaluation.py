"""The figures of an evaluation follow from its records."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from training.evaluation.evaluation import COMBINATION, MODES, ORACLE, SEARCHED, Evaluation, RecordResult
from training.router.stacked_base import Weights


def result(domain: str, tokens: int, *nats: float) -> RecordResult:
    """A record with the losses of `MODES`, then of `SEARCHED` where they are given."""
    names = (*MODES, *SEARCHED)[: len(nats)]
    oracle: Weights | None = {"chat": 0.7} if len(nats) > len(MODES) else None
    return RecordResult("r", domain, tokens, dict(zip(names, nats, strict=True)), {"math": 1.0}, oracle)


FOUND = Evaluation(
    (
        result("chat", 1, 4.0, 3.0, 2.0, 1.0, 0.75, 0.5),
        result("chat", 3, 4.0, 4.0, 3.0, 2.0),
        result("math", 2, 8.0, 6.0, 5.0, 4.0, 4.0, 4.0),
    ),
    {"math": "1" * 64},
    "2" * 64,
)


def test_domains_weigh_by_tokens_and_the_mean_by_domains() -> None:
    assert FOUND.nll["chat"] == {"base": 2.0, "ungated": 7 / 4, "routed": 5 / 4, "only-own": 3 / 4}
    assert FOUND.nll["math"] == {"base": 4.0, "ungated": 3.0, "routed": 2.5, "only-own": 2.0}
    assert FOUND.mean == {"base": 3.0, "ungated": 2.375, "routed": 1.875, "only-own": 1.375}


def test_the_oracle_is_compared_with_the_other_modes_on_its_own_records() -> None:
    compared = FOUND.compared
    assert compared.nll["chat"] == {"base": 4.0, "ungated": 3.0, "routed": 2.0, "only-own": 1.0} | {
        COMBINATION: 0.75,
        ORACLE: 0.5,
    }
    assert compared.mean[ORACLE] == (0.5 + 2.0) / 2
    assert FOUND.relative_regret == {
        COMBINATION: pytest.approx((2.0 + 2.5) / (0.75 + 2.0) - 1),
        ORACLE: pytest.approx((2.0 + 2.5) / (0.5 + 2.0) - 1),
    }
    assert replace(FOUND, records=FOUND.records[1:2]).relative_regret == {}


def test_intervals_hold_their_figures_and_are_paired() -> None:
    for mode, (low, high) in FOUND.mean_intervals.items():
        assert low <= FOUND.mean[mode] <= high
    value, (low, high) = FOUND.routed_less_base["chat"]
    assert value == -0.75
    assert (low, high) == pytest.approx((-2.0, -1 / 3)), "twice the first record, or twice the second"
    assert FOUND.routed_less_base["math"] == (-1.5, (-1.5, -1.5))
    assert FOUND.routed_less_base["mean"][0] == pytest.approx(-1.125)


def test_json_gives_back_the_evaluation() -> None:
    document = json.loads(json.dumps(FOUND.to_dict()))
    again = Evaluation.from_dict(document)
    assert again == FOUND
    assert again.to_dict() == FOUND.to_dict()
    assert document["nll"]["chat"]["routed"] == 5 / 4
    assert document["relative_regret"] == FOUND.relative_regret


@pytest.mark.parametrize(
    ("records", "cell", "title"),
    [
        (FOUND.records, "1.2500 (+0.750)", "The 2 records on which the oracle was measured"),
        (FOUND.records[1:2], "1.0000 (+0.333)", "validation split"),
    ],
)
def test_the_tables_show_gains_over_the_base(
    records: tuple[RecordResult, ...], cell: str, title: str
) -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    replace(FOUND, records=records).show(console)
    text = console.export_text()
    assert cell in text
    assert title in text
    assert ("oracle" in text) == (records == FOUND.records)
