"""`--check` does all that a start does and says what would be served; its exit code, whether all is well."""

from __future__ import annotations

import gc

import pytest

from brainstacks.engine.facts import Readiness
from brainstacks.errors import CorruptBlob
from server import __main__ as entry
from server import log
from server.check import check
from tests.server.fake_engine import FakeEngine


@pytest.mark.anyio
async def test_what_is_served_is_printed_and_every_stack_was_on_the_device(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.tiers["math"] = "disk"
    assert await check(engine)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "base", "context", "computed", "registry", "router", "stack", "stack",
    ]  # fmt: skip
    assert "tiny, none, float32, fingerprint ffffffffffff" in lines[0]
    assert "math version 1, digest-math, 100 bytes, routed to" in lines[-1]
    assert engine.tiers["math"] == "device"
    assert engine.closed


@pytest.mark.anyio
async def test_what_is_wrong_is_named_once_each(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.ready = Readiness(True, ("law version 2: it overflows",))

    async def damaged(domain: str) -> None:
        raise CorruptBlob("its bytes are damaged")

    monkeypatch.setattr(engine.stacks, "load", damaged)
    assert not await check(engine)
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem")]
    assert problems == [
        "problem   law version 2: it overflows",
        "problem   chat: its bytes are damaged",
        "problem   math: its bytes are damaged",
    ]


@pytest.mark.parametrize(("problems", "code"), [((), 0), (("no router",), 1)])
def test_the_exit_code_says_whether_all_is_well_and_nothing_listens(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, problems: tuple[str, ...], code: int
) -> None:
    engine.ready = Readiness(True, problems)
    monkeypatch.setattr(entry, "open_engine", lambda *_: engine)
    monkeypatch.setattr(entry, "make_server", None)
    monkeypatch.setattr(log, "configure", lambda _: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with pytest.raises(SystemExit) as ended:
        entry.main(["--check"])
    assert ended.value.code == code
