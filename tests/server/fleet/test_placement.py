from __future__ import annotations

from collections.abc import Sequence

from server.fleet.placement import FEW, SLACK, Candidate, Placement
from server.fleet.wish import Wish


def names(order: Sequence[Sequence[Candidate]]) -> list[list[str]]:
    return [[one.name for one in group] for group in order]


def replica(name: str, load: int = 0, device: str = "", host: str = "") -> Candidate:
    return Candidate(name, load, frozenset(device.split()), frozenset(host.split()))


def test_without_a_wish_all_are_equal_and_load_decides() -> None:
    order = Placement().order(Wish(), [replica("a", 3), replica("b"), replica("c", 1)])
    assert names(order) == [["a", "b", "c"]]


def test_a_conversation_goes_where_it_was_whatever_stacks_are_elsewhere() -> None:
    fleet = [replica("a", device="math"), replica("b", 2)]
    assert names(Placement().order(Wish(last="b", stacks=("math",)), fleet)) == [["b"], ["a"]]


def test_most_of_a_compositions_stacks_then_the_device_before_host_memory() -> None:
    fleet = [
        replica("a", device="math"),
        replica("b", device="math", host="code"),
        replica("c", device="code math"),
        replica("d"),
    ]
    order = Placement().order(Wish(stacks=("code", "math")), fleet)
    assert names(order) == [["c"], ["a", "b", "d"]]
    assert names(Placement().order(Wish(stacks=("code", "math")), fleet[:2])) == [["b"], ["a"]]


def test_a_replica_that_has_all_it_can_bear_is_the_last_choice() -> None:
    fleet = [replica("a", 2 * SLACK, device="math"), replica("b"), replica("c")]
    assert names(Placement().order(Wish(last="a", stacks=("math",)), fleet)) == [["b", "c"], ["a"]]


def test_a_few_more_requests_are_no_reason_to_go_elsewhere() -> None:
    fleet = [replica("a", SLACK - 1), replica("b"), replica("c")]
    assert names(Placement().order(Wish(last="a"), fleet))[0] == ["a"]


def test_a_hot_stack_gets_more_copies_before_its_replica_is_full() -> None:
    """Once two of three requests ask for `math`, two of three replicas are to have it."""
    placement = Placement()
    alone = [replica("a", device="math"), replica("b"), replica("c")]
    wish = Wish(stacks=("math",))
    assert names(placement.order(wish, alone))[0] == ["a"]
    for _ in range(2 * FEW + 10):
        placement.order(wish, alone)
    assert names(placement.order(wish, alone)) == [["a", "b", "c"]]
    assert names(placement.order(Wish(last="a", stacks=("math",)), alone))[0] == ["a"]
    two = [replica("a", device="math"), replica("b", host="math"), replica("c")]
    assert names(placement.order(wish, two))[0] == ["a"]


def test_without_the_floor_a_hot_stack_stays_where_it_is_within_the_bound() -> None:
    placement = Placement(floor=False)
    fleet = [replica("a", device="math"), replica("b"), replica("c")]
    orders = [names(placement.order(Wish(stacks=("math",)), fleet)) for _ in range(2 * FEW + 10)]
    assert orders == [[["a"], ["b", "c"]]] * len(orders)


def test_a_named_replica_comes_first_however_busy() -> None:
    fleet = [replica("a", 99), replica("b")]
    assert names(Placement().order(Wish(replica="a"), fleet)) == [["a"], ["b"]]


def test_one_that_is_named_and_not_there_leaves_the_order_to_the_rest() -> None:
    assert names(Placement().order(Wish(replica="gone"), [replica("a"), replica("b")])) == [["a", "b"]]


def test_nobody_to_choose_is_no_order() -> None:
    assert Placement().order(Wish(stacks=("math",)), []) == []
