"""The router's look at a prompt gives what the reference gives, and is the prefill of what needs no stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainstacks.engine.request import CompositionRequest, RouteRequest
from tests.engine.driving import Answer, Served, finish, idle, prompt_of, request, run, serve, start
from tests.tiny import FAMILIES, plain_greedy, tiny_model, write_router

pytestmark = pytest.mark.usefixtures("each_backend")

ROUTED = CompositionRequest("routed")


def serve_routed(
    directory: Path, family: str = "llama", *, gate: float = 0.12, window: int = 256, **limits: Any
) -> Served:
    """With a router that applies nothing at or below `gate` and reads `window` tokens."""
    served = serve(directory, family, **limits)
    file = write_router(
        directory / "router.safetensors",
        served.registry,
        served.base.identity,
        gate_threshold=gate,
        sequence_length=window,
    )
    served.registry.publish_router(file)
    served.engine.serving.sync()
    return served


def routing_of(served: Served, prompts: list[list[int]]) -> list[Answer]:
    answers = [Answer() for _ in prompts]
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        served.engine.add(RouteRequest(f"route-{i}", tuple(prompt), ROUTED), answer.events.append)
    finish(served.engine)
    return answers


@pytest.mark.parametrize(
    "limits", [{}, {"prefix_caching": False}, {"deterministic": True}, {"kv_cache_tokens": 64}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_those_of_the_reference(
    tmp_path: Path, family: str, limits: dict[str, Any]
) -> None:
    """Also where the prompts of one pass find no room for their keys and values."""
    served = serve_routed(tmp_path, family, window=24, **limits)
    router = served.engine.serving.router
    assert router is not None
    prompts = [prompt_of(length) for length in (1, 9, 24, 40, 33)]
    for prompt, answer in zip(prompts, routing_of(served, prompts), strict=True):
        (expected,) = router.probabilities(served.base, [prompt])
        (routing,) = answer.events
        assert routing.probabilities == pytest.approx(expected, abs=1e-5)  # type: ignore[union-attr]
    assert idle(served)


def test_a_base_only_route_computes_only_what_the_router_did_not(tmp_path: Path) -> None:
    served = serve_routed(tmp_path, gate=0.99, window=48)
    prompt = prompt_of(70)
    (answer,) = run(served.engine, request("r", prompt, ROUTED))
    assert answer.routed.routing.active == ()
    assert answer.ids() == plain_greedy(tiny_model(), prompt, 8)
    assert served.engine._blocks.reused_tokens == 48


def test_a_composed_route_reuses_nothing_of_what_the_base_alone_computed(tmp_path: Path) -> None:
    served = serve_routed(tmp_path, gate=0.0)
    prompt = prompt_of(70)
    (answer,) = run(served.engine, request("r", prompt, ROUTED))
    routing = answer.routed.routing
    assert routing.active
    stacks = [(served.stacks[domain], routing.weights[domain]) for domain in routing.active]
    assert answer.ids() == plain_greedy(tiny_model(), prompt, 8, stacks)
    assert served.engine._blocks.reused_tokens == 0


def test_a_pass_reads_no_more_prompts_and_tokens_than_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve_routed(tmp_path, window=30, max_router_batch=3, max_prefill_tokens=64)
    plain_run, sizes = served.engine._intake._router_pass.run, []

    def counted(router, requests):  # type: ignore[no-untyped-def]
        sizes.append([len(each.prompt_ids) for each in requests])
        return plain_run(router, requests)

    monkeypatch.setattr(served.engine._intake._router_pass, "run", counted)
    lengths = [5, 6, 7, 8, 40, 40, 40, 100]
    start(served.engine, *(request(f"r{i}", prompt_of(n, seed=i), ROUTED) for i, n in enumerate(lengths)))
    finish(served.engine)
    assert sizes == [[5, 6, 7], [8, 40], [40, 40], [100]]


def test_of_a_conversations_prompts_that_wait_together_only_the_first_is_read(tmp_path: Path) -> None:
    served = serve_routed(tmp_path)
    talk = CompositionRequest(sticky="talk")
    requests = [request(f"r{i}", prompt_of(40, seed=i), talk) for i in range(3)]
    first, *others = run(served.engine, *requests)
    assert first.routed.routing.router_ms > 0.0
    for answer in others:
        assert answer.routed.routing.weights == first.routed.routing.weights
        assert answer.routed.routing.router_ms == 0.0
