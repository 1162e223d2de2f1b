"""What an abort or a failure ends, what it frees, and who goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.engine.request import CompositionRequest
from brainstacks.engine.runner.flight import Flight
from brainstacks.errors import EngineFailure, Unavailable
from tests.engine.driving import Served, finish, fixed, idle, prompt_of, request, run, serve, start
from tests.tiny import plain_greedy, tiny_model

pytestmark = pytest.mark.usefixtures("each_backend")


# --- aborts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_an_abort_at_any_stage_frees_everything_it_held(tmp_path: Path, steps: int) -> None:
    served = serve(tmp_path, max_prefill_tokens=4, max_batch_size=2)
    composition = fixed(chat=1.0, math=0.5)
    requests = [request(f"r{i}", prompt_of(11 + i), composition, n=2, max_tokens=50) for i in range(3)]
    start(served.engine, *requests)
    for _ in range(steps):
        served.engine.step()
    for one in requests:
        served.engine.abort(one.request_id)
    assert idle(served)
    assert not served.engine.has_work
    served.engine.abort("r0")


def test_an_abort_with_a_reason_tells_it(served: Served) -> None:
    (answer,) = start(served.engine, request("r", prompt_of(3)))
    served.engine.step()
    reason = Unavailable("closing")
    served.engine.abort("r", reason)
    assert answer.errors == [reason]


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reply"),
    [(RuntimeError("a kernel failed"), EngineFailure), (torch.OutOfMemoryError("no memory"), Unavailable)],
)
def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, reply: type[Exception]
) -> None:
    engine, prompt = served.engine, prompt_of(8)
    (canary,) = run(engine, request("canary", prompt, fixed(chat=1.0)))
    hurt = start(engine, request("a", prompt_of(3), fixed(math=1.0), n=2), request("b", prompt_of(4)))
    engine.step()
    with monkeypatch.context() as broken:

        def fail(*args: object) -> None:
            raise error

        broken.setattr(engine._runner, "launch", fail)
        engine.step()
    for answer in hurt:
        assert [type(e) for e in answer.errors] == [reply]
        assert str(error) not in answer.errors[0].message, "no internals reach a client"
    assert idle(served)
    (again,) = run(engine, request("again", prompt, fixed(chat=1.0)))
    assert again.ids() == canary.ids()


def test_a_failing_step_leaves_requests_alone_that_were_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tmp_path, max_batch_size=1)
    prompt = prompt_of(5)
    hurt, waiting = start(served.engine, request("a", prompt_of(3)), request("b", prompt, fixed(math=1.0)))
    with monkeypatch.context() as broken:
        broken.setattr(served.engine._runner, "launch", lambda *_: 1 / 0)
        served.engine.step()
    assert hurt.errors
    finish(served.engine)
    assert waiting.ids() == plain_greedy(tiny_model(), prompt, 8, served.plain(fixed(math=1.0)))


def test_a_failing_router_pass_ends_the_requests_being_routed_and_no_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tmp_path, router=True)
    prompt = prompt_of(5)
    (running,) = start(served.engine, request("running", prompt, fixed(math=1.0)))
    served.engine.step()
    (routed,) = start(served.engine, request("routed", prompt_of(4), CompositionRequest("routed")))
    with monkeypatch.context() as broken:
        broken.setattr(served.engine._intake._router_pass, "run", lambda *_: 1 / 0)
        served.engine.step()
    assert [type(e) for e in routed.errors] == [EngineFailure]
    finish(served.engine)
    assert running.ids() == plain_greedy(tiny_model(), prompt, 8, served.plain(fixed(math=1.0)))


def test_logits_that_are_not_finite_end_their_own_request_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(5)
    bad, good = start(
        served.engine, request("bad", prompt_of(4), n=2), request("good", prompt, fixed(math=1.0))
    )
    plain_run = served.engine.backend.run

    def poisoned(batch: Any, bank: Any) -> Any:
        at, logits = 0, plain_run(batch, bank).clone()
        for row, count in zip(batch.rows, batch.wanted_counts, strict=True):
            if row.completion.request.request_id == "bad":
                logits[at : at + count] = float("nan")
            at += count
        return logits

    monkeypatch.setattr(served.engine.backend, "run", poisoned)
    finish(served.engine)
    assert [type(e) for e in bad.errors] == [EngineFailure]
    assert good.ids() == plain_greedy(tiny_model(), prompt, 8, served.plain(fixed(math=1.0)))
    assert idle(served)


STAGES = {
    "schedule": "_scheduler.schedule",
    "forward": "_runner.launch",
    "fork": "_scheduler.fork",
    "copy": "_runner.backend.cache.copy",
    "remember": "_blocks.remember",
    "sample": "_sampler.start",
    "land": "land",
    "tell": "_delivery._finish",
    "route": "_intake._router_pass.run",
    "compose": "composer.compose",
    "start": "_sampler.new_state",
}


@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.OutOfMemoryError("no memory")])
@pytest.mark.parametrize("stage", sorted(STAGES))
@pytest.mark.parametrize("call", [1, 2])
def test_a_failure_at_any_stage_frees_everything_and_the_engine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int, error: Exception
) -> None:
    served = serve(tmp_path, router=stage == "route")
    engine, prompt = served.engine, prompt_of(24)
    composition = CompositionRequest("routed") if stage == "route" else fixed(chat=1.0)
    (canary,) = run(engine, request("canary", prompt, composition))
    *path, name = STAGES[stage].split(".")
    owner: Any = Flight if stage == "land" else engine
    for step in path:
        owner = getattr(owner, step)
    plain, calls = getattr(owner, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return plain(*args, **kwargs)

    answers = []
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, failing)
        for i in range(3):
            answers += start(engine, request(f"r{i}", prompt, composition, n=2))
            engine.step()
        finish(engine)
    assert calls >= call
    assert any(answer.errors for answer in answers)
    assert all(answer.over for answer in answers)
    for answer in answers:
        assert answer.errors or [answer.ids(0), answer.ids(1)] == [canary.ids()] * 2
    assert idle(served)
    (after,) = run(engine, request("after", prompt, composition))
    assert after.ids() == canary.ids()


def test_what_a_failed_step_computed_is_not_reused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompt = served.engine, prompt_of(40)
    start(engine, request("r", prompt, max_tokens=30, ignore_eos=True))
    engine.step()
    with monkeypatch.context() as broken:

        def scribble(*args: object) -> None:
            for tensor in engine._runner.backend.cache.keys:
                tensor.fill_(float("nan"))
            raise RuntimeError("broken")

        broken.setattr(engine._runner, "launch", scribble)
        engine.step()
    (after,) = run(engine, request("after", prompt))
    assert after.ids() == plain_greedy(tiny_model(), prompt, 8)
