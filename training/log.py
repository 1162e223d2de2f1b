"""What a training loop tells, and to whom: the run's log, or, in processes beside the main one, nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Steps(Protocol):
    """Told of every step that is done."""

    def advance(self, loss: float, tokens: int) -> None: ...


class Log(Protocol):
    """See `run_log.RunLog`."""

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
