"""A sampled stack counts for what its thread is at, and where nobody may look, that is said."""

from __future__ import annotations

import asyncio
import sysconfig
from pathlib import Path

import pytest

from benchmarks.http_share import interpreter as at
from benchmarks.http_share.interpreter import PARTS, part_of, sampled, shares
from benchmarks.http_share.threads import ENCODERS, ENGINE, LOOP, OTHERS
from brainstacks.errors import ConfigError

LOOPING = "thread (1): MainThread;"
SERVING = "Runner.run (asyncio/runners.py:86);Handle._run (asyncio/events.py:78)"
ANSWER = f"{SERVING};EventStream._send_all (server/sse.py:60);Answer.events (server/api/answer.py:110)"


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        ("thread (7): engine;run (brainstacks/engine/engine_thread.py:126)", (ENGINE, at.STEP)),
        (
            "thread (7): engine;tell (brainstacks/engine/delivery.py:50);"
            "push (brainstacks/engine/detokenizer.py:56);decode (brainstacks/tokenizer.py:90)",
            (ENGINE, at.DETOKENIZING),
        ),
        (f"{LOOPING}{SERVING}", (LOOP, at.ASYNCIO)),
        (f"{LOOPING}{ANSWER}", (LOOP, at.EVENTS)),
        (f"{LOOPING}{ANSWER};dumps (json/__init__.py:183)", (LOOP, at.EVENTS)),
        (f"{LOOPING}{ANSWER};inc (prometheus_client/m.py:3)", (LOOP, at.METRICS)),
        (f"{LOOPING}{ANSWER};namedtuple (collections/__init__.py:1)", (LOOP, at.EVENTS)),
        (f"{LOOPING}{ANSWER};send (uvicorn/protocols/http/h11_impl.py:1)", (LOOP, at.HTTP)),
        (f"{LOOPING}{SERVING};write (asyncio/selector_events.py:1)", (LOOP, at.HTTP)),
        (f"{LOOPING}{SERVING};app (fastapi/routing.py:1)", (LOOP, at.VALIDATION)),
        (f"{LOOPING}{SERVING};app (fastapi/a.py:1);run_sync (anyio/to_thread.py:1)", (LOOP, at.TEMPLATES)),
        ("thread (1): MainThread;<module> (elsewhere.py:3)", (LOOP, at.ELSE)),
        ("thread (9): AnyIO worker thread;encode (brainstacks/tokenizer.py:70)", (ENCODERS, at.TEMPLATES)),
        ("thread (9): step helper;_helper (brainstacks/kernels/team.py:200)", (OTHERS, at.ELSE)),
    ],
)  # fmt: skip
def test_a_stack_counts_by_its_thread_and_its_innermost_frame_that_is_known(
    stack: str, part: tuple[str, str]
) -> None:
    assert part_of(stack) == part
    assert part in PARTS


def test_shares_are_of_all_looks_also_of_those_that_found_nobody() -> None:
    lines = [
        f"{LOOPING}{ANSWER} 3",
        f"{LOOPING}{ANSWER} 2",
        "thread (7): engine 10",
    ]
    found = shares(lines, 20)
    assert (found[LOOP, at.EVENTS], found[ENGINE, at.STEP]) == (0.25, 0.5)
    assert sum(found.values()) == 0.75


def test_without_the_program_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match=r"py-spy is not installed.*--profile-seconds 0"):
        asyncio.run(sampled(1, holding=True))


def test_where_it_may_not_look_its_own_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = tmp_path / "py-spy"
    refused.write_text("#!/bin/sh\necho Permission denied\nexit 1\n")
    refused.chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match=r"Permission denied.*--profile-seconds 0"):
        asyncio.run(sampled(1, holding=True))


def test_what_it_saw_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing = tmp_path / "py-spy"
    seeing.write_text(
        "#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\n"
        f"echo 'thread (1): MainThread;event (server/sse.py:20) {at.RATE}' > $1\n"
    )
    seeing.chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert asyncio.run(sampled(2, holding=True))[LOOP, at.EVENTS] == 0.5
