"""What a run says while it runs: metrics to a file and to TensorBoard, progress to the terminal; and whom a
loop tells: in processes beside the main one, to nobody.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from brainstacks.durable import storage_full
from brainstacks.errors import ConfigError
from training.progress import Progress, shown
from training.runs.paths import METRICS, TENSORBOARD


class Steps(Protocol):
    """Told of every step that is done."""

    def advance(self, loss: float, tokens: int) -> None: ...


class Log(Protocol):
    """See `RunLog`."""

    def record(
        self,
        kind: str,
        *,
        domain: str,
        round: int,
        step: int,
        timing: Mapping[str, float],
        **values: Any,
    ) -> None: ...

    @property
    def position(self) -> int: ...

    def rewind(self, position: int) -> None: ...

    def progress(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Steps]: ...


class NoLog:
    """Keeps nothing and shows nothing."""

    position = 0

    def record(self, kind: str, **values: Any) -> None:
        pass

    def rewind(self, position: int) -> None:
        pass

    @contextmanager
    def progress(self, name: str, total: int, done: int = 0) -> Iterator[Steps]:
        yield _NoSteps()


class _NoSteps:
    def advance(self, loss: float, tokens: int) -> None:
        pass


TIMING = "timing"
"""The one key of a line that two runs of the same recipe differ in."""

_log = logging.getLogger(__name__)


class RunLog:
    """`metrics.jsonl` and `tensorboard/` in a run's directory.

    TensorBoard shows each round as a run of its own, whose steps start at 0. Without the package
    `tensorboard`, a warning says so once and the file has everything all the same.

    A start first calls `rewind`, with 0 where there is no checkpoint: the end of the file may be cut off.

    Args:
        directory: the run's, which exists.
    """

    def __init__(self, directory: Path) -> None:
        self._file = open(directory / METRICS, "ab", buffering=0)  # noqa: SIM115 (closed on exit)
        self._tensorboard = directory / TENSORBOARD
        self._writer_class = _summary_writer()
        self._writers: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_writers()
        finally:
            self._file.close()

    def record(
        self,
        kind: str,
        *,
        domain: str,
        round: int,
        step: int,
        timing: Mapping[str, float],
        **values: Any,
    ) -> None:
        """Append one line; its numbers go to TensorBoard too, as `<kind>/<name>`.

        Args:
            timing: seconds, tokens per second and the like: what another run would measure differently.
            values: JSON values; a NaN stays one.

        Raises:
            StorageFull: no room.
        """
        line = {"kind": kind, "domain": domain, "round": round, "step": step, **values}
        if timing:
            line[TIMING] = dict(timing)
        with storage_full("the log"):
            text = memoryview(_dump(line).encode() + b"\n")
            while text:
                text = text[self._file.write(text) :]
            if self._writer_class is not None:
                writer = self._writer(f"{domain}/round-{round}", step)
                for name, value in {**values, **timing}.items():
                    if isinstance(value, int | float):
                        writer.add_scalar(f"{kind}/{name}", value, step)

    def _writer(self, run: str, step: int) -> Any:
        """The writer of one round. What it wrote of `step` and later before a kill is told to be ignored."""
        if run not in self._writers:
            self._writers[run] = self._writer_class(str(self._tensorboard / run), purge_step=step)
        return self._writers[run]

    @property
    def position(self) -> int:
        """Bytes of `metrics.jsonl` so far, all of them on disk by now: for a checkpoint."""
        with storage_full("the log"):
            for writer in self._writers.values():
                writer.flush()
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def rewind(self, position: int) -> None:
        """Go on from a checkpoint: forget what was recorded after it, in the file and in TensorBoard.

        Raises:
            ConfigError: the file is shorter than that.
        """
        size = os.fstat(self._file.fileno()).st_size
        if size < position:
            raise ConfigError(
                f"{METRICS} has {size} bytes and had {position} when the checkpoint was saved; "
                "put it back as it was, or start again with another --run"
            )
        self._file.truncate(position)
        self._close_writers()

    def _close_writers(self) -> None:
        with storage_full("the log"):
            while self._writers:
                self._writers.popitem()[1].close()

    @contextmanager
    def progress(self, name: str, total: int, done: int = 0) -> Iterator[RoundSteps]:
        """Show on stderr how far `name` is, from its start.

        Args:
            total: steps.
            done: how many of them were done before, by a run that this one resumes.
        """
        with shown(name, total, "steps", done, quiet=0) as progress:
            yield RoundSteps(progress)


class RoundSteps:
    """Counts a round's tokens in `progress`, that of its steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._tokens = progress, 0

    def advance(self, loss: float, tokens: int) -> None:
        """One more step: its loss (nats) and how many tokens it trained on."""
        self._tokens += tokens
        rate = self._tokens / max(self._progress.elapsed, 1e-9)
        self._progress.advance(f"loss {loss:.4f}, {rate:.0f} tokens/s")


def canonical(line: str) -> str:
    """A line of `metrics.jsonl` without its timing: equal for runs that computed the same."""
    values = json.loads(line)
    values.pop(TIMING, None)
    return _dump(values)


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _summary_writer() -> Any:
    """TensorBoard's writer; None, with a warning, where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        _log.warning("%s: metrics go to %s alone; `pip install tensorboard` adds it", error.msg, METRICS)
        return None
    return SummaryWriter
