"""Of each kind of thread it is known what it took, those included that began or ended meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.http_share import threads
from benchmarks.http_share.threads import ENCODERS, ENGINE, HELPERS, LOOP, OTHERS, ThreadTime, spent
from brainstacks.errors import ConfigError


def test_what_threads_took_is_added_up_by_kind() -> None:
    before = {1: ThreadTime(1.0, 0.5), 2: ThreadTime(2.0, 0.0), 3: ThreadTime(7.0, 7.0)}
    after = {
        1: ThreadTime(1.5, 0.75),
        2: ThreadTime(2.25, 0.5),
        4: ThreadTime(0.25, 0.25),  # began meanwhile, while 3 ended
        5: ThreadTime(0.5, 0.0),
    }
    found = spent(before, after, {1: ENGINE, 2: ENCODERS, 4: ENCODERS})
    assert found == {
        ENGINE: ThreadTime(0.5, 0.25),
        LOOP: ThreadTime(),
        ENCODERS: ThreadTime(0.5, 0.75),
        HELPERS: ThreadTime(),
        OTHERS: ThreadTime(0.5, 0.0),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("engine", ENGINE),
        ("MainThread", LOOP),
        ("AnyIO worker thread", ENCODERS),
        ("step helper", HELPERS),
        ("asyncio-waitpid-5", OTHERS),
    ],
)
def test_a_threads_kind_is_told_by_its_name(name: str, kind: str) -> None:
    assert threads.kind_of(name) == kind


def test_a_thread_that_computes_takes_a_core_and_one_that_waits_takes_none() -> None:
    ids: list[int] = []
    told, over = threading.Event(), threading.Event()

    def idle() -> None:
        ids.append(threading.get_native_id())
        told.set()
        over.wait()

    waiting = threading.Thread(target=idle)
    waiting.start()
    told.wait()
    before, begin = threads.own(), time.thread_time()
    while time.thread_time() - begin < 0.2:
        pass
    after = threads.own()
    over.set()
    waiting.join()
    own = threading.get_native_id()
    assert (after[own] - before[own]).computed == pytest.approx(0.2, abs=0.1)
    assert (after[ids[0]] - before[ids[0]]).computed < 0.05


def test_another_process_can_be_looked_at() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        assert child.pid in threads.thread_times(child.pid)


def test_a_system_that_does_not_tell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "Path", lambda _: tmp_path)
    with pytest.raises(ConfigError, match="measure on Linux"):
        threads.thread_times(os.getpid())
