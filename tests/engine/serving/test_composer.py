"""What a request asks for becomes weights of exact stack versions; a stale stack is not routed to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from brainstacks.engine.request import CompositionRequest, RouteRequest
from brainstacks.engine.serving.composer import Composition
from brainstacks.errors import Conflict, DomainNotFound, InvalidRequest, VersionNotFound
from brainstacks.routing.policy import GATE_THRESHOLD
from brainstacks.routing.reader import Reading
from tests.engine.driving import DOMAINS, Served, fixed, serve
from tests.tiny import publish_stack, random_stack, write_router


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return serve(tmp_path, router=True)


def compose(
    served: Served, asked: CompositionRequest, probabilities: dict[str, float] | None = None
) -> Composition:
    reading = None if probabilities is None else Reading(probabilities, 0.25)
    return served.engine.composer.compose(RouteRequest("r", (), asked), 7, reading, 1.5)


PROBABILITIES = {"chat": 0.05, "code": 0.6, "math": 0.9}


def test_base_applies_and_pins_nothing(served: Served) -> None:
    composition = compose(served, CompositionRequest("base"))
    assert composition.routing.weights == dict.fromkeys(DOMAINS, 0.0)
    assert (composition.routing.active, composition.weights, composition.lease.stacks) == ((), {}, {})
    assert composition.lease.ready


def test_ungated_applies_everything_at_one(served: Served) -> None:
    composition = compose(served, CompositionRequest("ungated"))
    assert composition.weights == {(domain, 1): 1.0 for domain in DOMAINS}


def test_fixed_weights_pass_the_gate_by_their_size_whatever_their_sign(served: Served) -> None:
    composition = compose(served, fixed(chat=GATE_THRESHOLD, code=-0.5))
    assert composition.routing.weights == {"chat": 0.12, "code": -0.5, "math": 0.0}
    assert composition.weights == {("code", 1): -0.5}


def test_a_routed_request_gets_the_routers_weights(served: Served) -> None:
    composition = compose(served, CompositionRequest("routed"), PROBABILITIES)
    assert composition.routing.weights == PROBABILITIES
    assert composition.routing.active == ("code", "math")
    assert (composition.routing.router_ms, composition.routing.generation) == (1.5, 7)


def test_top_keeps_the_heaviest(served: Served) -> None:
    composition = compose(served, CompositionRequest("routed", top=1), PROBABILITIES)
    assert composition.weights == {("math", 1): 0.9}
    composition = compose(served, CompositionRequest("fixed", {"chat": 0.5, "math": -0.9}, top=1))
    assert composition.weights == {("math", 1): -0.9}


def test_floors_of_the_router_file_hold(served: Served, tmp_path: Path) -> None:
    path = write_router(
        tmp_path / "floored.safetensors", served.registry, served.base.identity, floors={"chat": 0.2}
    )
    served.registry.publish_router(path)
    served.engine.serving.sync()
    composition = compose(served, CompositionRequest("routed"), PROBABILITIES)
    assert composition.weights == {("chat", 1): 0.2, ("code", 1): 0.6, ("math", 1): 0.9}


def test_a_stack_newer_than_the_router_is_served_by_name_and_not_routed_to(
    served: Served, tmp_path: Path
) -> None:
    identity = served.base.identity
    publish_stack(served.registry, identity, "math", random_stack(identity.dims, 99), tmp_path)
    served.engine.serving.sync()
    assert [served.engine.serving.routed_by(domain) for domain in DOMAINS] == ["router", "router", None]
    (told,) = served.engine.serving.unrouted
    assert told.startswith("math: no router in force was trained with it, and its file has no signature")
    routed = compose(served, CompositionRequest("routed"), PROBABILITIES)
    assert routed.routing.weights == {"chat": 0.05, "code": 0.6, "math": 0.0}
    assert routed.routing.active == ("code",)
    assert compose(served, fixed(math=1.0)).weights == {("math", 2): 1.0}
    served.registry.activate("math", 1)
    served.engine.serving.sync()
    assert served.engine.serving.unrouted == ()
    assert served.engine.serving.routed_by("math") == "router", (
        "rolled back to the stack that the router knows"
    )


def test_a_domain_that_the_router_does_not_know_is_not_routed_to(served: Served, tmp_path: Path) -> None:
    identity = served.base.identity
    publish_stack(served.registry, identity, "law", random_stack(identity.dims, 5), tmp_path)
    served.engine.serving.sync()
    assert served.engine.serving.routed_by("law") is None
    routed = compose(served, CompositionRequest("routed"), PROBABILITIES)
    assert routed.routing.weights["law"] == 0.0
    assert ("law", 1) in compose(served, CompositionRequest("ungated")).weights


def test_an_unknown_domain_is_refused_with_those_that_are_served(served: Served) -> None:
    with pytest.raises(InvalidRequest, match="'poetry'; the domains served are: chat, code, math"):
        compose(served, fixed(poetry=1.0, chat=1.0))
    assert served.engine.stacks.in_use("chat") == 0


def test_without_a_router_a_routed_request_is_the_base(tmp_path: Path) -> None:
    served = serve(tmp_path)
    assert compose(served, CompositionRequest("routed")).weights == {}


def test_a_composition_keeps_its_versions_until_its_lease_is_released(served: Served, tmp_path: Path) -> None:
    identity, stacks = served.base.identity, served.engine.stacks
    composition = compose(served, fixed(math=1.0))
    publish_stack(served.registry, identity, "math", random_stack(identity.dims, 99), tmp_path)
    served.engine.serving.sync()
    assert composition.lease.ready
    assert ("math", 1) in stacks.bank.keys
    stacks.release(composition.lease)
    stacks.wait_for_loads()
    assert ("math", 1) not in stacks.bank.keys


def test_a_route_is_told_without_pinning_or_loading_anything(served: Served) -> None:
    serving, composer = served.engine.serving, served.engine.composer
    serving.evict("math")
    told = composer.route(RouteRequest("r", ()), 7, Reading(PROBABILITIES, 0.25), 1.5)
    assert serving.cache.tier("math") == "host"
    assert serving.cache.in_use("math") == 0
    composed = compose(served, CompositionRequest("routed"), PROBABILITIES).routing
    assert dataclasses.replace(told, created=composed.created) == composed


def test_probabilities_go_with_the_router_that_gave_them(served: Served, tmp_path: Path) -> None:
    """Published between the router's pass and the composition: its floors are not for the old one's words."""
    asked = served.engine.serving.reader
    path = write_router(
        tmp_path / "floored.safetensors", served.registry, served.base.identity, floors={"chat": 0.2}
    )
    served.registry.publish_router(path)
    served.engine.serving.sync()
    assert served.engine.serving.router is not asked.router
    composition = served.engine.composer.compose(
        RouteRequest("r", ()), 7, Reading(PROBABILITIES), 1.5, reader=asked
    )
    assert composition.weights == {("code", 1): 0.6, ("math", 1): 0.9}


# --- exact versions -------------------------------------------------------------------------------


@pytest.fixture
def replaced(served: Served, tmp_path: Path) -> Served:
    """With a second version of math, which is the one that serves."""
    identity = served.base.identity
    publish_stack(served.registry, identity, "math", random_stack(identity.dims, 99), tmp_path)
    served.engine.serving.sync()
    return served


def test_a_version_that_serves_is_what_is_asked_for_by_number_or_digest(replaced: Served) -> None:
    digest = replaced.engine.stacks.served("math").digest
    for wanted in (2, digest):
        asked = CompositionRequest("fixed", {"math": 1.0}, stacks={"math": wanted, "chat": 1})
        assert compose(replaced, asked).routing.stacks["math"].digest == digest


def test_every_other_version_is_refused_and_nothing_is_held(replaced: Served) -> None:
    history = replaced.registry.snapshot().domain("math")
    cases: list[tuple[dict[str, int | str], type[Exception]]] = [
        ({"math": 1}, Conflict),
        ({"math": history.versions[0].digest}, Conflict),
        ({"math": 3}, VersionNotFound),
        ({"math": "0" * 64}, VersionNotFound),
        ({"law": 1}, DomainNotFound),
    ]
    for stacks, error in cases:
        with pytest.raises(error):
            compose(replaced, CompositionRequest("fixed", {"math": 1.0}, stacks=stacks))
    assert replaced.engine.stacks.in_use("math") == 0


def test_a_version_that_is_replaced_after_it_was_looked_at_is_refused(
    replaced: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, asked = replaced.engine.stacks, CompositionRequest("fixed", {"math": 1.0}, stacks={"math": 2})
    acquire = cache.acquire

    def late(*arguments: Any) -> Any:
        replaced.registry.activate("math", 1)
        replaced.engine.serving.sync()
        return acquire(*arguments)

    monkeypatch.setattr(cache, "acquire", late)
    with pytest.raises(Conflict, match="version 1 of math is served"):
        compose(replaced, asked)
    assert cache.in_use("math") == 0
