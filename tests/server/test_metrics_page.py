"""docs/metrics.md lists every metric, with its type and labels; the dashboard asks for none but these."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from tests.server.conftest import ADMIN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "brainstacks.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
OF_PROMETHEUS = {"job", "instance", "le"}


def listed() -> dict[str, tuple[str, frozenset[str]]]:
    """Metric -> its type and labels, as the page has them."""
    rows = re.findall(r"^\| `(brainstacks_\w+)` \| (\w+) \| (.*?) \|", PAGE, re.MULTILINE)
    assert len(rows) == len({name for name, _, _ in rows})
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def known(name: str) -> frozenset[str]:
    """Labels of a metric, or of a series of a histogram. Raises KeyError for what the page has not."""
    kind, labels = listed().get(name) or listed()[re.sub(r"_(bucket|sum|count)$", "", name)]
    assert name in listed() or kind == "histogram", name
    return labels


@pytest.mark.anyio
async def test_the_page_and_the_server_have_the_same_metrics_types_and_labels(
    client: httpx2.AsyncClient, app: FastAPI
) -> None:
    await client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    )
    await client.put("/admin/stacks/law", content=b"x", headers=ADMIN)
    await client.get("/nope")
    served = {}
    for family in app.state.context.metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        served[name] = (family.type, frozenset(labels))
    assert served == listed()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_of_the_dashboard_asks_for_what_there_is(expression: str) -> None:
    names = re.findall(r"brainstacks_\w+", expression)
    assert names
    labels = frozenset.union(*map(known, names))
    asked = {label for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(", ")}
    asked |= set(re.findall(r"[{,] ?(\w+)=", expression))
    assert asked <= labels | OF_PROMETHEUS
    assert expression.count("(") == expression.count(")")


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(EXPRESSIONS)
    assert [name for name in listed() if not re.search(rf"{name}(_bucket|_sum|_count)?\b", shown)] == []


def test_a_legend_names_labels_that_its_expression_keeps() -> None:
    targets: list[dict[str, Any]] = [t for panel in DASHBOARD["panels"] for t in panel.get("targets", ())]
    for target in targets:
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        kept = {label for group in re.findall(r"by \((.*?)\)", target["expr"]) for label in group.split(", ")}
        assert named <= kept, target
