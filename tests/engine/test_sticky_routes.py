"""A conversation keeps its route, as long as the router that made it is in force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brainstacks.engine.request import CompositionRequest
from brainstacks.engine.routes import StickyRoutes
from brainstacks.routing.reader import Reader, Reading
from brainstacks.routing.router import Router
from tests.engine.driving import Served, prompt_of, request, run, serve
from tests.tiny import publish_stack, random_stack

READING = Reading({"math": 0.9}, 0.25)

pytestmark = pytest.mark.usefixtures("each_backend")


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    found = serve(tmp_path, router=True).engine.serving.reader
    assert found.router is not None
    return found


def another_router(reader: Reader) -> Reader:
    """One that reads with the same network out of another file."""
    assert reader.router is not None
    again = Router(reader.router.metadata, reader.router.network)
    return Reader(again, {}, torch.device("cpu"))


def test_what_was_remembered_is_recalled_by_name(reader: Reader) -> None:
    sticky = StickyRoutes(8)
    sticky.remember(("", "a"), reader, READING)
    assert sticky.recall(("", "a"), reader) == (reader, READING)
    assert sticky.recall(("", "b"), reader) is None


def test_no_name_is_never_recalled(reader: Reader) -> None:
    sticky = StickyRoutes(8)
    sticky.remember(None, reader, READING)
    assert sticky.recall(None, reader) is None


def test_another_router_reads_the_prompt_itself(reader: Reader, tmp_path: Path) -> None:
    sticky = StickyRoutes(8)
    sticky.remember(("", "a"), reader, READING)
    assert sticky.recall(("", "a"), another_router(reader)) is None
    assert sticky.recall(("", "a"), reader) is None, "the old route is forgotten, not kept for its return"


def test_the_conversation_that_was_longest_silent_gives_way(reader: Reader) -> None:
    sticky = StickyRoutes(2)
    for name in ("a", "b"):
        sticky.remember(("", name), reader, READING)
    sticky.recall(("", "a"), reader)
    sticky.remember(("", "c"), reader, Reading({"math": 0.1}))
    assert [sticky.recall(("", name), reader) is not None for name in ("a", "b", "c")] == [True, False, True]


def test_a_name_is_a_tenant_s_own(reader: Reader) -> None:
    sticky = StickyRoutes(8)
    sticky.remember(("one", "a"), reader, READING)
    assert sticky.recall(("two", "a"), reader) is None


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return serve(tmp_path / "served", router=True)


def test_the_prompts_of_a_conversation_run_with_the_route_of_its_first(served: Served) -> None:
    sticky, free = CompositionRequest(sticky="talk"), CompositionRequest()
    prompts = [prompt_of(40, seed) for seed in range(2)]
    (first,) = run(served.engine, request("first", prompts[0], sticky))
    (second,) = run(served.engine, request("second", prompts[1], sticky))
    (own,) = run(served.engine, request("own", prompts[1], free))
    assert second.routed.routing.weights == first.routed.routing.weights
    assert second.routed.routing.probabilities == first.routed.routing.probabilities
    assert second.routed.routing.router_ms == 0.0
    assert own.routed.routing.weights != first.routed.routing.weights
    assert own.routed.routing.router_ms > 0.0


def test_what_else_is_published_leaves_the_routes_of_conversations(served: Served, tmp_path: Path) -> None:
    """The same router's bytes stay the same router."""
    sticky = CompositionRequest(sticky="talk")
    prompts = [prompt_of(40, seed) for seed in range(2)]
    (first,) = run(served.engine, request("first", prompts[0], sticky))
    router, identity = served.engine.serving.router, served.base.identity
    publish_stack(served.registry, identity, "law", random_stack(identity.dims, 5), tmp_path)
    served.engine.serving.sync()
    assert served.engine.serving.router is router
    (second,) = run(served.engine, request("second", prompts[1], sticky))
    assert second.routed.routing.probabilities == first.routed.routing.probabilities
    assert second.routed.routing.router_ms == 0.0


def test_a_conversation_of_another_tenant_is_another_one(served: Served) -> None:
    sticky = CompositionRequest(sticky="talk")
    first = replace(request("r", prompt_of(40), sticky), tenant="one")
    other = replace(request("r", prompt_of(40, 1), sticky), tenant="two")
    (ours,) = run(served.engine, first)
    (theirs,) = run(served.engine, other)
    assert theirs.routed.routing.router_ms > 0.0
    assert theirs.routed.routing.weights != ours.routed.routing.weights
