"""A stack with a signature is routed to when it is uploaded, until a router that knows it comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from brainstacks.composed_model import ComposedModel
from brainstacks.engine.request import CompositionRequest, RouteRequest, Routing
from brainstacks.errors import IncompatibleArtifact, InvalidArtifact
from brainstacks.routing.signature import Signature
from brainstacks.stacks.artifact import inspect_stack
from tests.engine.driving import DOMAINS, Answer, Served, finish, prompt_of, request, run, serve
from tests.routing.signed import signature_around, write_signed
from tests.tiny import publish_stack, random_stack, write_router

LAW = [[100 + i % 7, 101, 102, 103, 104 + i % 5] for i in range(12)]
"""Prompts that are alike; those of `prompt_of` are not."""


def sign(served: Served, directory: Path, domain: str = "law", signature: Signature | None = None) -> str:
    """Publish a signed stack of `domain`; its digest."""
    path = write_signed(
        directory / f"{domain}-signed.safetensors",
        served.base,
        domain,
        random_stack(served.base.identity.dims, 5),
        signature or signature_around(served.base, LAW),
    )
    digest = served.registry.publish(path).digest
    served.engine.serving.sync()
    return digest


def routed(served: Served, prompt: Sequence[int]) -> Routing:
    answer = Answer()
    served.engine.add(RouteRequest("r", tuple(prompt)), answer.events.append)
    finish(served.engine)
    (found,) = answer.events
    assert isinstance(found, Routing)
    return found


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return serve(tmp_path, router=True)


def test_a_domain_that_the_router_does_not_know_is_routed_by_its_signature(
    served: Served, tmp_path: Path
) -> None:
    before = routed(served, LAW[0])
    assert before.gap is None
    sign(served, tmp_path)
    assert served.engine.serving.unrouted == ()
    own, other = routed(served, LAW[0]), routed(served, prompt_of(30))
    assert own.routed_by == {**dict.fromkeys(DOMAINS, "router"), "law": "signature"}
    assert own.weights["law"] > 0.9
    assert "law" in own.active
    assert other.weights["law"] < 0.12
    assert (own.gap, other.gap) == (None, None), "what has no signature may be what helps"
    known = {domain: own.weights[domain] for domain in DOMAINS}
    assert known == pytest.approx({domain: before.weights[domain] for domain in DOMAINS})


def test_generation_routes_as_the_route_says(served: Served, tmp_path: Path) -> None:
    sign(served, tmp_path)
    told = routed(served, LAW[1])
    (answer,) = run(served.engine, request("g", LAW[1], CompositionRequest()))
    assert answer.routed.routing.weights == pytest.approx(told.weights, abs=1e-5)
    assert answer.routed.routing.routed_by == told.routed_by
    assert answer.routed.routing.gap == told.gap


def test_a_router_that_was_trained_with_it_takes_over(served: Served, tmp_path: Path) -> None:
    sign(served, tmp_path)
    served.registry.publish_router(
        write_router(tmp_path / "next.safetensors", served.registry, served.base.identity)
    )
    served.engine.serving.sync()
    found = routed(served, LAW[0])
    assert found.routed_by["law"] == "router"


def test_without_a_router_signatures_alone_route(tmp_path: Path) -> None:
    served = serve(tmp_path)
    sign(served, tmp_path)
    assert not served.engine.serving.problems
    assert [line.split(":")[0] for line in served.engine.serving.unrouted] == list(DOMAINS)
    found = routed(served, LAW[0])
    assert found.active == ("law",)
    assert found.routed_by == {"law": "signature"}
    other = routed(served, prompt_of(30))
    assert other.active == ()
    assert found.gap is not None
    assert other.gap is not None
    assert found.gap < 0.1 < 0.9 < other.gap
    assert ComposedModel(served.engine).route(LAW[0]).weights == pytest.approx(found.weights, abs=1e-5)


def test_a_new_version_without_a_signature_is_left_out_again(served: Served, tmp_path: Path) -> None:
    sign(served, tmp_path)
    identity = served.base.identity
    publish_stack(served.registry, identity, "law", random_stack(identity.dims, 6), tmp_path)
    served.engine.serving.sync()
    found = routed(served, LAW[0])
    assert (found.weights["law"], "law" in found.routed_by, found.gap) == (0.0, False, None)


def test_a_nearer_domain_s_signature_takes_a_prompt_from_another(served: Served, tmp_path: Path) -> None:
    """The signatures of domains that the router knows are the contrast."""
    far = [[7 * i % 90 for i in range(j, j + 20)] for j in range(8)]
    sign(served, tmp_path, "law", signature_around(served.base, LAW, sigma=1.0))
    alone = routed(served, far[0]).weights["law"]
    sign(served, tmp_path, "tax", signature_around(served.base, far))
    beside = routed(served, far[0])
    assert beside.weights["tax"] > 0.5
    assert beside.weights["law"] < alone


def test_a_signature_of_other_features_is_not_used(served: Served, tmp_path: Path) -> None:
    sign(served, tmp_path, signature=signature_around(served.base, LAW, sequence_length=128))
    assert [line.split(":")[0] for line in served.engine.serving.unrouted] == ["law"]
    assert routed(served, LAW[0]).gap is None


def test_a_signature_that_was_made_on_nf4_is_not_used_on_finer_values_and_says_so(
    served: Served, tmp_path: Path
) -> None:
    made = signature_around(served.base, LAW)
    coarse = dataclasses.replace(made, config=dataclasses.replace(made.config, quantization="nf4"))
    sign(served, tmp_path, signature=coarse)
    assert [line.split(":")[0] for line in served.engine.serving.unrouted] == ["law"]
    (problem,) = served.engine.serving.problems
    assert problem.startswith(
        "law version 1: its signature: it was made on a base in nf4, and the base in use"
    )
    served.engine.serving.try_all()  # as at a start
    assert list(served.engine.serving.problems) == [problem]
    sign(served, tmp_path, "tax")
    assert list(served.engine.serving.problems) == [problem], "another domain changes nothing"
    rounded = dataclasses.replace(made, config=dataclasses.replace(made.config, quantization="int8"))
    sign(served, tmp_path, signature=rounded)
    assert (served.engine.serving.unrouted, served.engine.serving.problems) == ((), ())


def test_a_conversation_keeps_its_route_when_another_domain_comes_and_not_when_its_own_changes(
    served: Served, tmp_path: Path
) -> None:
    sticky = CompositionRequest(sticky="talk")
    sign(served, tmp_path)
    (first,) = run(served.engine, request("1", LAW[0], sticky))
    sign(served, tmp_path, "tax")
    (second,) = run(served.engine, request("2", prompt_of(30), sticky))
    assert second.routed.routing.router_ms == 0.0
    assert second.routed.routing.weights == {**first.routed.routing.weights, "tax": 0.0}
    sign(served, tmp_path, "law", signature_around(served.base, LAW, sigma=0.5))
    (third,) = run(served.engine, request("3", prompt_of(30), sticky))
    assert third.routed.routing.router_ms > 0.0


def test_a_signature_that_does_not_fit_is_refused_when_it_is_published(
    served: Served, tmp_path: Path
) -> None:
    sound = signature_around(served.base, LAW)
    stack = random_stack(served.base.identity.dims, 5)
    flat = dataclasses.replace(sound, distances=torch.zeros(2))
    narrow = Signature(
        dataclasses.replace(sound.config, width=4), *(torch.zeros(2, 4),) * 2, torch.zeros(1, 2, 4),
        sound.distances,
    )  # fmt: skip
    for signature, error in ((flat, InvalidArtifact), (narrow, IncompatibleArtifact)):
        path = write_signed(tmp_path / "bad.safetensors", served.base, "law", stack, signature)
        with pytest.raises(error):
            served.engine.serving.candidates.receive(inspect_stack(path, keep=True))


def test_the_gap_is_told_where_all_that_is_routed_to_has_signatures(served: Served, tmp_path: Path) -> None:
    stacks = {**served.stacks, "law": random_stack(served.base.identity.dims, 5)}
    prompts = {domain: [[i - 50 - 20 * n for i in one] for one in LAW] for n, domain in enumerate(DOMAINS)}
    for domain, own in {**prompts, "law": LAW}.items():
        signature = signature_around(served.base, own)
        path = tmp_path / f"{domain}-signed.safetensors"
        served.registry.publish(write_signed(path, served.base, domain, stacks[domain], signature))
        served.engine.serving.sync()
    served.registry.publish_router(
        write_router(tmp_path / "next.safetensors", served.registry, served.base.identity)
    )
    served.engine.serving.sync()
    near, far = routed(served, LAW[0]), routed(served, prompt_of(30))
    assert near.routed_by == dict.fromkeys((*DOMAINS, "law"), "router")
    assert near.gap is not None
    assert far.gap is not None
    assert near.gap < 0.1 < 0.5 < far.gap
