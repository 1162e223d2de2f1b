"""The queue counts what the engine has to compute: sequences, not requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainstacks.engine.request import CompositionRequest
from brainstacks.errors import Overloaded
from tests.engine.driving import finish, prompt_of, request, serve, start


def test_hostile_25_a_request_counts_with_all_its_completions(tmp_path: Path) -> None:
    engine = serve(tmp_path, max_queue=8).engine
    start(engine, request("a", prompt_of(4), n=5))
    assert engine.gauges.waiting == 5
    with pytest.raises(Overloaded, match="5 sequences wait and 4 are asked for"):
        start(engine, request("b", prompt_of(4), n=4))
    start(engine, request("c", prompt_of(4), n=3))
    with pytest.raises(Overloaded):
        start(engine, request("d", prompt_of(4)))
    finish(engine)
    assert engine.gauges.waiting == 0


def test_more_than_the_queue_holds_comes_in_when_nobody_waits(tmp_path: Path) -> None:
    engine = serve(tmp_path, max_queue=2).engine
    (answer,) = start(engine, request("a", prompt_of(4), CompositionRequest("base"), n=3))
    finish(engine)
    assert all(answer.finish(index) for index in range(3))
