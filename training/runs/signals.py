"""Asked to stop: a flag that the training loop looks at between steps, where it can save what it has."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from brainstacks.errors import BrainstacksError, StorageFull


class Interrupted(BrainstacksError):
    """The run stopped because it was asked to, where what it has done is saved.

    Args:
        what: what stopped and where: "stopped at step 40 of math, round 1".
    """

    default_code = "interrupted"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; what was done is kept: give the same command and --run again to go on")


def exit_status(error: BrainstacksError) -> int:
    """Of a command that ends in `error`: 75 where the same command goes on, 1 where it was refused."""
    return 75 if isinstance(error, Interrupted | StorageFull) else 1


class StopRequest:
    """Within it, SIGTERM and SIGINT (Ctrl-C) set `requested`; a second SIGINT raises KeyboardInterrupt.

    Python takes signals in the main thread alone: elsewhere this changes nothing; `requested` stays False.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.requested = True
