from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from server.fleet.merged_metrics import merged
from server.metrics import Metrics
from tests.server.fake_engine import FakeEngine


def test_each_replicas_samples_are_told_apart_and_nothing_is_lost() -> None:
    metrics = Metrics(FakeEngine())
    metrics.responses.labels("alice", "200").inc(3)
    metrics.router.observe(0.02)
    page = metrics.render()
    whole = {
        family.name: family
        for family in text_string_to_metric_families(merged({"a": page, "b": page}).decode())
    }
    for family in text_string_to_metric_families(page.decode()):
        both = whole[family.name]
        assert (both.type, both.documentation) == (family.type, family.documentation)
        for replica in ("a", "b"):
            of_one = [
                (one.name, {k: v for k, v in one.labels.items() if k != "replica"}, one.value)
                for one in both.samples
                if one.labels["replica"] == replica
            ]
            assert of_one == [(one.name, one.labels, one.value) for one in family.samples]
