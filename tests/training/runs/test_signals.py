"""`training.runs.signals`: asked to stop, a run stops where it can go on from."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from training.runs.signals import Interrupted, StopRequest


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def ask(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_only_sets_the_flag(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        ask(number)
        assert stop.requested


def test_a_second_interrupt_stops_at_once_and_a_second_termination_does_not() -> None:
    with StopRequest() as stop:
        ask(signal.SIGTERM)
        ask(signal.SIGTERM)
        ask(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)


def test_the_handlers_before_are_restored_even_after_an_error() -> None:
    before = handlers()
    stop = StopRequest()
    with stop:
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt), stop:
        raise KeyboardInterrupt
    assert handlers() == before


def test_outside_the_main_thread_it_changes_nothing() -> None:
    before, seen = handlers(), []

    def use() -> None:
        with StopRequest() as stop:
            seen.append((handlers(), stop.requested))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_who_was_interrupted_is_told_how_to_go_on() -> None:
    error = Interrupted("stopped at step 40 of math, round 1")
    assert error.message.startswith("stopped at step 40 of math, round 1; what was done is kept")
    assert "same command and --run" in error.message
    assert error.code == "interrupted"
