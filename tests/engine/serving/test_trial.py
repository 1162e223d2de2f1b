"""What may come to be served is tried first: what cannot compute is refused, and what serves goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from brainstacks.config import EngineConfig, Quantization
from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.engine.request import CompositionRequest
from brainstacks.engine.serving.trial import Trial
from brainstacks.errors import EngineFailure, InvalidArtifact, Unavailable
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks import safetensors_file
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_router_tensors, save_router
from tests.engine import driving
from tests.engine.async_driving import Running, collect, expected, long, stream
from tests.engine.driving import Served, fixed, prompt_of, request
from tests.engine.stepped import Stepped
from tests.stacks.files import tree
from tests.tiny import publish_stack, random_stack, stack_config, write_router

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]

ROUTED = CompositionRequest("routed")
LARGEST = 16384.0
"""Of weights and of alpha."""


def resized(stack: StackTensors, size: float) -> StackTensors:
    """`stack` with every weight at `size`, its sign kept."""
    return StackTensors(stack.config, stack.rounds, {n: size * t.sign() for n, t in stack.tensors.items()})


def overflowing(served: Served) -> StackTensors:
    """Within all bounds, and yet its numbers leave float32."""
    config = stack_config(rank=16, experts=8, alpha=LARGEST)
    return resized(random_stack(served.base.identity.dims, 7, config=config), LARGEST)


def write_changed_router(served: Served, directory: Path, size: float) -> Path:
    """A random router with every weight at `size`, its sign kept."""
    path = write_router(directory / "changed.safetensors", served.registry, served.base.identity)
    tensors = {name: size * tensor.sign() for name, tensor in load_router_tensors(path).items()}
    save_router(path, read_router_metadata(path), tensors)
    return path


# --- the trial itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(("quantization", "exact"), [("none", True), ("nf4", False), ("nf4", True)])
@pytest.mark.parametrize(
    ("size", "alpha"), [(1.0, 1e38), (3.4e38, 4.0), (1e20, 4.0), (LARGEST, LARGEST), (1e30, 1e-4)]
)
def test_what_overflows_is_refused_whatever_computes_it(
    tmp_path: Path, quantization: Quantization, exact: bool, size: float, alpha: float
) -> None:
    """Also in the int8 products of the compiled step, and where a norm makes zeros of what overflows."""
    wide: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    stepped = Stepped(tmp_path, driving.backend, "llama", quantization, exact, **wide)
    trial = Trial(stepped.base, stepped.backend, list(range(40)), lambda command: command())
    sound = random_stack(stepped.base.identity.dims, 1, rounds=2, config=stack_config(rank=8, experts=4))
    trial.stack(stepped.bank.place(sound))
    config = stack_config(rank=8, experts=4)
    object.__setattr__(config, "alpha", alpha)  # no file may say so: the bounds come first
    absurd = resized(StackTensors(config, 2, sound.tensors), size)
    with pytest.raises(InvalidArtifact, match=r"tried alone at weight 1\.0, and numbers overflow"):
        trial.stack(stepped.bank.place(absurd))
    trial.stack(stepped.bank.place(sound))


def test_a_trial_leaves_those_that_are_resident_as_they_are(tmp_path: Path) -> None:
    """Its stack takes the numbers of slots that others have."""
    stepped = Stepped(tmp_path, driving.backend)
    trial = Trial(stepped.base, stepped.backend, list(range(16)), lambda command: command())
    prompts, weights = [prompt_of(9)], [dict.fromkeys(stepped.stacks, 0.5)]
    (before,) = stepped.logits(prompts, weights)
    for rounds in (1, 2, 5):
        trial.stack(stepped.bank.place(random_stack(stepped.base.identity.dims, 9, rounds=rounds)))
        (after,) = stepped.logits(prompts, weights)
        assert torch.equal(before, after)


# --- publication ----------------------------------------------------------------------------------


async def test_an_upload_that_overflows_is_refused_stores_nothing_and_the_old_version_serves(
    running: Running,
) -> None:
    engine, directory = running.engine, running.directory / "registry"
    one = request("r", prompt_of(5), fixed(math=1.0))
    generation, files = engine.stacks.generation, tree(directory / "blobs")
    path = running.write("math", overflowing(running.served))
    for domain, file in (("math", path), ("new", running.write("new", overflowing(running.served)))):
        with pytest.raises(InvalidArtifact, match="numbers overflow"):
            await engine.stacks.publish(domain, file)
    assert (engine.stacks.generation, tree(directory / "blobs")) == (generation, files)
    assert await collect(stream(engine, one)) == expected(running, one, 8)
    assert set(running.served.engine.stacks.bank.keys) == {("chat", 1), ("code", 1), ("math", 1)}
    assert engine.status.readiness().problems == ()
    assert await running.idle()


async def test_streams_that_run_while_stacks_are_tried_are_what_they_are_alone(running: Running) -> None:
    compositions = [fixed(math=1.0), fixed(chat=0.7, code=-0.5), CompositionRequest("base")]
    requests = [long(f"r{i}", composition, seed=i) for i, composition in enumerate(compositions)]
    answers = [asyncio.create_task(collect(stream(running.engine, one))) for one in requests]
    dims = running.served.base.identity.dims
    for i in range(3):
        with pytest.raises(InvalidArtifact):
            await running.engine.stacks.publish("math", running.write("math", overflowing(running.served)))
        await running.engine.stacks.publish("law", running.write("law", random_stack(dims, i, rounds=3)))
    for one, answer in zip(requests, await asyncio.gather(*answers), strict=True):
        assert answer == expected(running, one)
    assert await running.idle()


async def test_a_stack_that_came_another_way_is_tried_before_it_is_served(running: Running) -> None:
    """By the command line, say, which has no base to try it with."""
    served = running.served
    served.registry.publish(running.write("math", overflowing(served)))
    await running.engine.stacks.reload()
    assert running.engine.stacks.domain("math").version == 1
    (problem,) = running.engine.status.readiness().problems[:1]
    assert problem.startswith("math version 2: the stack was tried")
    with pytest.raises(InvalidArtifact, match="overflow"):
        await running.engine.stacks.activate("math", 2)
    one = request("r", prompt_of(5), fixed(math=1.0))
    assert await collect(stream(running.engine, one)) == expected(running, one, 8)


@pytest.mark.parametrize("budget", [None, 500_000])
async def test_what_is_in_the_registry_at_the_start_is_tried_as_well(
    served: Served, tmp_path: Path, budget: int | None
) -> None:
    """Wherever it is: within the budget, it does not fit on the device beside the others."""
    publish_stack(served.registry, served.base.identity, "math", overflowing(served), tmp_path)
    engine = AsyncEngine.open(
        base=tmp_path / "base",
        registry=tmp_path / "registry",
        quantization="none",
        config=EngineConfig(backend=driving.backend, device_stack_bytes=budget),
    )
    assert engine.stacks.names() == ["chat", "code"]
    assert engine.status.readiness().problems[0].startswith("math version 2: the stack was tried")
    await engine.close()


# --- routers --------------------------------------------------------------------------------------


async def test_a_router_that_gives_what_is_no_number_is_refused_and_the_old_one_routes(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, served = running.engine, running.served
    before, generation = await engine.route("before", prompt_of(5), ROUTED), engine.stacks.generation
    with monkeypatch.context() as unbounded:
        unbounded.setattr(safetensors_file, "_MAX_BITS", dict.fromkeys(("F32", "F16", "BF16"), 1 << 31))
        huge = write_changed_router(served, running.directory, 1e30)
        with pytest.raises(InvalidArtifact, match="chat, code, math a probability that is not finite when"):
            await engine.stacks.publish_router(huge)
    with pytest.raises(InvalidArtifact, match=r"holds 1e\+30 or its negative; .* at most 16384"):
        await engine.stacks.publish_router(huge)
    assert engine.stacks.generation == generation
    after = await engine.route("after", prompt_of(5), ROUTED)
    assert after.probabilities == before.probabilities
    assert engine.status.readiness().problems == ()


async def test_the_router_that_is_shown_is_the_one_that_routes_also_where_the_active_one_is_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, served = running.engine, running.served
    shown = engine.stacks.router()
    assert shown is not None
    with monkeypatch.context() as unbounded:
        unbounded.setattr(safetensors_file, "_MAX_BITS", dict.fromkeys(("F32", "F16", "BF16"), 1 << 31))
        huge = write_changed_router(served, running.directory, 1e30)
        active = served.registry.publish_router(huge)  # by hand: nobody tries it
        await engine.stacks.reload()
    assert active.version == shown.version + 1
    assert f"router version {active.version}: " in engine.status.readiness().problems[0]
    assert engine.stacks.router() == shown


async def test_a_router_that_fails_on_one_prompt_fails_that_request_alone_and_leaves_no_record(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record may hold what JSON cannot say: all records would be unreadable with it."""
    engine, router = running.engine, running.served.engine.serving.router
    assert router is not None
    plain = router.of_features
    gate = running.hold()

    def not_a_number(*args: Tensor) -> list[dict[str, float]]:
        rows = plain(*args)
        rows[0] = dict.fromkeys(rows[0], math.nan)
        return rows

    monkeypatch.setattr(router, "of_features", not_a_number)
    sticky = CompositionRequest("routed", sticky="talk")
    bad = asyncio.create_task(engine.route("bad", prompt_of(5), sticky))
    await asyncio.sleep(0)
    good = asyncio.create_task(engine.route("good", prompt_of(6), ROUTED))
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(EngineFailure, match="the router gave chat, code, math a probability that is not fin"):
        await bad
    json.dumps(dataclasses.asdict(await good), allow_nan=False)
    assert [record.request_id for record in engine.status.routing_records()] == ["good"]
    assert "a routed request failed: the router gave" in engine.status.readiness().problems[-1]
    monkeypatch.undo()
    assert (await engine.route("again", prompt_of(5), sticky)).router_ms > 0, "nothing is remembered of it"
    await engine.stacks.publish_router(
        write_router(running.directory / "r", running.served.registry, running.served.base.identity, seed=1)
    )
    assert engine.status.readiness().problems == ()


# --- the engine's thread --------------------------------------------------------------------------


async def test_what_waits_for_the_thread_ends_with_it(running: Running) -> None:
    gate = running.hold()
    stack = running.write("law", random_stack(running.served.base.identity.dims, 1))
    publishing = asyncio.create_task(running.engine.stacks.publish("law", stack))
    thread = running.engine._thread
    await asyncio.to_thread(until, lambda: bool(thread._called))
    thread._commands.get()  # what was asked comes after the end
    closing = asyncio.create_task(running.engine.close())
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(Unavailable, match="the engine has stopped"):
        await publishing
    await closing
    with pytest.raises(Unavailable, match="the engine has stopped"):
        await running.engine.stacks.publish("law", stack)
    assert "law" not in running.served.registry.snapshot().domains


def until(done: Callable[[], bool]) -> None:
    while not done():
        pass
