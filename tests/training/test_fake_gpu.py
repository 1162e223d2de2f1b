"""On a GPU the host waits for the device once a step, and no operation adds in an order of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.static_cuda]

FAMILIES = ("llama", "qwen3", "gemma3_text")
"""With and without norms of queries and keys, and windows."""

DISTINCT = {"index_put", "scatter", "scatter_"}
"""Writes to distinct places, where no order shows: gradients of labelled positions, and chosen experts."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What was done -> what `tests.training.fake_gpu` recorded."""
    command = [sys.executable, "-m", "tests.training.fake_gpu", *FAMILIES]
    done = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE)
    recorded: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return recorded


def test_a_step_waits_for_the_device_once_however_it_is_split(found: dict[str, Any]) -> None:
    steps = {name: record["waits"] for name, record in found.items() if name != "outcomes"}
    assert len(steps) == len(FAMILIES) + 2
    for name, waits in steps.items():
        assert [line.startswith("processes.py: ") for line in waits] == [True], name


def test_outcomes_wait_once_for_the_losses_of_a_forward(found: dict[str, Any]) -> None:
    assert found["outcomes"]["waits"] == ["objective.py: found = nll.cpu()"]


def test_nothing_is_computed_that_has_no_order_or_stops_where_one_is_asked_for(found: dict[str, Any]) -> None:
    for name, record in found.items():
        assert record["stops"] == [], name
        assert set(record["varies"]) <= DISTINCT, name
    assert found["outcomes"]["varies"] == ["scatter_"]
