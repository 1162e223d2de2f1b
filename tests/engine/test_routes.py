"""Routing records: the newest few, by request."""

from __future__ import annotations

import pytest

from brainstacks.engine.request import Routing
from brainstacks.engine.routes import RoutingRecords
from brainstacks.errors import RecordNotFound


def routing(
    name: str,
    active: tuple[str, ...] = (),
    domains: tuple[str, ...] = ("chat", "math"),
    tenant: str = "",
) -> Routing:
    weights = dict.fromkeys(domains, 1.0)
    return Routing(name, "fixed", None, weights, active, {}, 0.0, tenant=tenant)


def test_the_oldest_gives_way() -> None:
    records = RoutingRecords(2)
    for name in ("a", "b", "c"):
        records.add(routing(name))
    with pytest.raises(RecordNotFound, match="'a'"):
        records.get("a")
    assert [r.request_id for r in records.recent()] == ["c", "b"]


def test_a_request_id_that_comes_again_replaces_its_record_and_is_newest() -> None:
    records = RoutingRecords(2)
    for name, active in (("a", ()), ("b", ()), ("a", ("math",))):
        records.add(routing(name, active))
    assert records.get("a").active == ("math",)
    assert [r.request_id for r in records.recent()] == ["a", "b"]


def test_records_are_found_by_domain_and_by_whether_it_was_active() -> None:
    records = RoutingRecords(9)
    records.add(routing("math", ("math",)))
    records.add(routing("none"))
    records.add(routing("other", ("law",), ("law",)))

    def found(**which: object) -> list[str]:
        return [r.request_id for r in records.recent(**which)]  # type: ignore[arg-type]

    assert found(domain="math") == ["none", "math"]
    assert found(domain="math", active=True) == ["math"]
    assert found(domain="math", active=False) == ["none"]
    assert found(active=True) == ["other", "math"]
    assert found(active=False) == ["none"]


def test_hostile_35_a_record_is_found_and_replaced_by_its_own_tenant_alone() -> None:
    records = RoutingRecords(9)
    records.add(routing("job", ("math",), tenant="one"))
    records.add(routing("job", ("chat",), tenant="two"))
    assert records.get("job", "one").active == ("math",)
    assert records.get("job", "two").active == ("chat",)
    for stranger in ("", "three"):
        with pytest.raises(RecordNotFound):
            records.get("job", stranger)
    with pytest.raises(RecordNotFound):
        records.get("two/job", "")
    assert [(r.tenant, r.request_id) for r in records.recent()] == [("two", "job"), ("one", "job")]
