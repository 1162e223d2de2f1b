from __future__ import annotations

from benchmarks.fleet import TURNS, conversations, page
from benchmarks.instruments.results import Spread

DOMAINS = [f"d{number:02}" for number in range(20)]


def test_conversations_are_the_same_for_every_fleet_and_begin_each_in_its_own_way() -> None:
    found = conversations(DOMAINS, 30, seed=3)
    assert found == conversations(DOMAINS, 30, seed=3)
    assert found != conversations(DOMAINS, 30, seed=4)
    assert len({one.said[0] for one in found}) == 30
    assert {len(one.said) for one in found} == {TURNS}
    assert {len(one.weights) for one in found} <= {1, 2, 3}


def test_popular_domains_are_in_more_conversations() -> None:
    found = conversations(DOMAINS, 400, seed=0)
    asked = [sum(domain in one.weights for one in found) for domain in DOMAINS]
    assert asked[0] > 2 * asked[5] > 0
    assert min(asked) > 0


def test_the_page_shows_the_ratio_and_every_fleet() -> None:
    one = {"first_ms": Spread.of([2.0]), "between_ms": Spread.of([1.0])}
    fleet = {
        "requests": 9, "errors": [], "seconds": 3.0, "loads_per_request": 0.25, "stacks_there": 0.75,
        "prompt_reused": 0.5, "busiest_over_mean": 1.1, "replicas": 2,
    }  # fmt: skip
    text = page({"server": one, "fleet": one, "ratio": one}, {"by load": fleet, "affinity": fleet}, 50, 8)
    assert text.count("0.25") == 2
    for word in ("ratio", "by load", "affinity", "loads per request"):
        assert word in text
