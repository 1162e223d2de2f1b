"""`training.runs.log`: a resumed run's log is the uninterrupted one's, in the file and in TensorBoard."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from brainstacks.errors import ConfigError, StorageFull
from training.progress import Progress
from training.runs.log import RoundSteps, RunLog, canonical


@pytest.fixture(autouse=True)
def _a_second_between_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads its files by the second of their names, and a run is not resumed within one."""
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer, "time", SimpleNamespace(time=itertools.count(1_000_000_000).__next__))


def record(
    log: RunLog, step: int, loss: float, *, seconds: float = 1.0, domain: str = "math", round: int = 1
) -> None:
    log.record("step", domain=domain, round=round, step=step, timing={"seconds": seconds}, loss=loss)


def lines(directory: Path) -> list[str]:
    return (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def curve(directory: Path, run: str, tag: str) -> list[tuple[int, float]]:
    """(step, value) of one curve, as TensorBoard shows it."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(directory / "tensorboard" / run)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_record_is_one_sorted_line_and_is_there_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.record(
            "step", domain="math", round=0, step=3, timing={"seconds": 0.5}, loss=0.1, use=[1, 2], note="ä"
        )
        log.record("step", domain="math", round=0, step=4, timing={}, loss=math.nan)
        first, second = lines(tmp_path)
    assert first == json.dumps(json.loads(first), sort_keys=True)
    assert json.loads(first) == {
        "kind": "step",
        "domain": "math",
        "round": 0,
        "step": 3,
        "loss": 0.1,
        "use": [1, 2],
        "note": "ä",
        "timing": {"seconds": 0.5},
    }
    assert second == '{"domain": "math", "kind": "step", "loss": NaN, "round": 0, "step": 4}'


def test_lines_differ_in_timing_alone_between_equal_runs(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for seconds in (0.5, 0.7):
            record(log, 1, 0.1, seconds=seconds)
        record(log, 1, 0.2, seconds=0.5)
    slow, fast, other = lines(tmp_path)
    assert slow != fast
    assert canonical(slow) == canonical(fast)
    assert canonical(slow) != canonical(other)


def test_a_resumed_log_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    def steps(log: RunLog, first: int, last: int, seconds: float) -> None:
        for step in range(first, last + 1):
            record(log, step, 1 / step, seconds=seconds)

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir()
    resumed.mkdir()
    with RunLog(straight) as log:
        steps(log, 1, 8, seconds=1.0)
    with RunLog(resumed) as log:
        steps(log, 1, 4, seconds=2.0)
        position = log.position
        assert position == (resumed / "metrics.jsonl").stat().st_size
        record(log, 5, 999.0)
        record(log, 6, 999.0)
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"cut o')
    with RunLog(resumed) as log:
        log.rewind(position)
        steps(log, 5, 8, seconds=3.0)
    assert [canonical(line) for line in lines(resumed)] == [canonical(line) for line in lines(straight)]
    shown = curve(straight, "math/round-1", "step/loss")
    assert [step for step, _ in shown] == list(range(1, 9))
    assert curve(resumed, "math/round-1", "step/loss") == shown


def test_a_rewound_log_goes_on_in_the_same_process(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        record(log, 1, 1.0)
        position = log.position
        record(log, 2, 999.0)
        log.rewind(position)
        record(log, 2, 2.0)
    assert [json.loads(line)["loss"] for line in lines(tmp_path)] == [1.0, 2.0]
    assert curve(tmp_path, "math/round-1", "step/loss") == [(1, 1.0), (2, 2.0)]


def test_rounds_are_curves_of_their_own_so_resuming_one_leaves_the_others_whole(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for domain, round in (("math", 0), ("math", 1), ("chat", 0)):
            for step in (1, 2, 3):
                record(log, step, float(step), domain=domain, round=round)
    with RunLog(tmp_path) as log:
        record(log, 2, 5.0, seconds=4.0, domain="chat", round=0)
    assert curve(tmp_path, "math/round-0", "step/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert curve(tmp_path, "math/round-1", "step/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert curve(tmp_path, "chat/round-0", "step/loss") == [(1, 1.0), (2, 5.0)]
    assert curve(tmp_path, "chat/round-0", "step/seconds") == [(1, 1.0), (2, 4.0)]


def test_a_log_that_lost_lines_of_before_the_checkpoint_is_refused(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log, pytest.raises(ConfigError, match=r"has 0 bytes and had 7 .* another --run"):
        log.rewind(7)


def test_no_room_for_the_log_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with RunLog(tmp_path) as log, pytest.raises(StorageFull, match="no room to write the log"):
        record(log, 1, 1.0)


def test_without_tensorboard_a_warning_says_so_once_and_the_file_has_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with RunLog(tmp_path) as log:
        for step in (1, 2):
            record(log, step, 1.0)
        assert log.position > 0
    assert len(lines(tmp_path)) == 2
    assert not (tmp_path / "tensorboard").exists()
    assert [record.getMessage() for record in caplog.records if "pip install tensorboard" in record.msg] == [
        record.getMessage() for record in caplog.records
    ]
    assert len(caplog.records) == 1


def test_progress_counts_tokens_from_where_the_run_resumed() -> None:
    now = [100.0]
    progress = Progress("math", 40, "steps", 20, lambda: now[0])
    steps = RoundSteps(progress)
    for seconds, loss, tokens, said in (
        (6, 2.5, 300, "math 21/40 steps: loss 2.5000, 50 tokens/s, 1.9 min left, ends "),
        (6, 2.25, 900, "math 22/40 steps: loss 2.2500, 100 tokens/s, 1.8 min left, ends "),
    ):
        now[0] += seconds
        steps.advance(loss, tokens)
        assert progress.text().startswith(said)


def test_without_a_terminal_progress_is_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path) as log, log.progress("math", total=110) as progress:
        for _ in range(110):
            progress.advance(loss=1.0, tokens=10)
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in shown] == [f"math {n}/110 steps" for n in range(5, 111, 5)]


def test_on_a_terminal_progress_is_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with RunLog(tmp_path) as log, log.progress("math", total=2, done=1) as progress:
        progress.advance(loss=1.5, tokens=10)
    shown = capsys.readouterr().err
    assert "math 2/2 steps: loss 1.5000" in shown
    assert "━" in shown
