"""What records and weights a contest takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.adapter_routers.contest import Contest, Sizes, mean_nll, rounded, units
from benchmarks.adapter_routers.kept_losses import KeptLosses
from brainstacks.errors import ConfigError
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from tests.tiny import write_router
from training.data.domains import DomainData
from training.data.encoding import Example
from training.data.records import Message, Record
from training.router.stacked_base import StackedBase


def records(count: int) -> list[Record]:
    return [Record(str(i), (Message("user", f"question {i}"),), "an answer") for i in range(count)]


@pytest.fixture
def contest(stacked: StackedBase, served: Registry, tmp_path: Path) -> Contest:
    """For two seeds, where art has one validation record."""
    path = write_router(tmp_path / "router.safetensors", served, stacked.base.identity)
    data = {
        name: DomainData(name, records(4), records(2), records(count), (), {}, 0, ())
        for name, count in (("zoology", 5), ("art", 1))
    }
    kept = KeptLosses(tmp_path / "losses.jsonl", {})
    return Contest(stacked, Router.load(path, stacked.base), served, data, kept, Sizes(2, 2, 2), (4, 7), 96)


def test_validation_records_are_dealt_to_the_seeds_so_that_none_is_measured_twice(contest: Contest) -> None:
    assert [e.id for e in contest.validation(4)["zoology"]] == ["0", "2"]
    with pytest.raises(ConfigError, match=r"art.*fewer seeds"):
        contest.validation(7)


def test_on_or_off_is_by_the_routers_own_bound() -> None:
    assert units([{"chat": 0.3, "math": 0.2}], 0.2) == [{"chat": 1.0}]


def test_rounded_weights_are_found_again() -> None:
    assert rounded([{"chat": 0.123456}]) == rounded([{"chat": 0.1234561}]) == [{"chat": 0.1235}]


def test_a_domain_counts_by_its_tokens_and_each_domain_once() -> None:
    short, long = Example("a", (1,), (1, 2)), Example("b", (1,), (1,) * 6)
    pairs = [("chat", short), ("chat", long), ("math", short)]
    assert mean_nll(pairs, [2.0, 14.0, 6.0]) == pytest.approx((2 + 3) / 2)
