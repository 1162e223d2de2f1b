"""A request that waits, for its client or for a stack, holds up nobody and goes on where it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from brainstacks.engine.request import Request
from brainstacks.engine.serving.composer import Composition
from brainstacks.errors import BrainstacksError, CorruptBlob
from brainstacks.stacks.lease import Lease
from tests.engine.driving import Served, finish, fixed, idle, prompt_of, request, serve, start, step_until
from tests.tiny import plain_greedy, tiny_model

pytestmark = pytest.mark.usefixtures("each_backend")


def test_a_paused_request_waits_and_goes_on_where_it_was(served: Served) -> None:
    engine, prompt = served.engine, prompt_of(9)
    slow, other = start(
        engine, request("slow", prompt, max_tokens=12, ignore_eos=True), request("other", prompt_of(5))
    )
    engine.step()
    engine.pause("slow")
    engine.pause("unknown")
    step_until(engine, lambda: other.over)
    assert len(slow.ids()) == 1
    assert engine.has_work
    assert not engine.can_step
    engine.step()
    assert len(slow.ids()) == 1
    engine.resume("slow")
    engine.resume("unknown")
    finish(engine)
    assert slow.ids() == plain_greedy(tiny_model(), prompt, 12, ends=())


class ColdLease(Lease):
    """A lease whose stacks come when the test says so."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease.stacks)
        self.lease = lease


def cool(served: Served, monkeypatch: pytest.MonkeyPatch, request_id: str) -> list[ColdLease]:
    """The stacks of `request_id` are not on the device at first; its lease, once it has one."""
    composer, stacks = served.engine.composer, served.engine.stacks
    compose, release = composer.compose, stacks.release
    leases: list[ColdLease] = []

    def composed(asked: Request, *args: Any, **kwargs: Any) -> Composition:
        made = compose(asked, *args, **kwargs)
        if asked.request_id != request_id:
            return made
        leases.append(ColdLease(made.lease))
        return dataclasses.replace(made, lease=leases[0])

    def released(lease: Any) -> None:
        release(lease.lease if isinstance(lease, ColdLease) else lease)

    monkeypatch.setattr(composer, "compose", composed)
    monkeypatch.setattr(stacks, "release", released)
    return leases


def test_who_waits_for_a_stack_holds_up_nobody_and_then_takes_its_place_in_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tmp_path, max_batch_size=1)
    engine, prompt = served.engine, prompt_of(9)
    leases = cool(served, monkeypatch, "cold")
    first, cold, late = start(
        engine, request("first", prompt), request("cold", prompt, fixed(math=1.0)), request("late", prompt)
    )
    engine.step()
    assert (engine.gauges.running, engine.gauges.waiting) == (1, 2)
    step_until(engine, lambda: first.over)
    leases[0].end_wait()
    step_until(engine, lambda: cold.over)
    assert not late.pieces()
    finish(engine)
    assert cold.ids() == plain_greedy(tiny_model(), prompt, 8, served.plain(fixed(math=1.0)))
    assert late.ids() == first.ids()
    assert idle(served)


@pytest.mark.parametrize("error", [None, CorruptBlob("its bytes are wrong")])
def test_with_nothing_but_a_load_under_way_the_engine_waits_until_it_is_over(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: BrainstacksError | None
) -> None:
    engine = served.engine
    leases = cool(served, monkeypatch, "cold")
    (cold,) = start(engine, request("cold", prompt_of(9), fixed(math=1.0)))
    changes: list[bool] = []
    engine.set_on_change(lambda: changes.append(True))
    engine.step()
    assert (engine.has_work, engine.can_step) == (True, False)
    leases[0].end_wait(error)
    engine._on_change()
    engine.wait()
    assert changes == [True]
    assert engine.can_step
    finish(engine)
    assert cold.errors == ([] if error is None else [error])
    assert (cold.finish() is None) == (error is not None)
    assert idle(served)
