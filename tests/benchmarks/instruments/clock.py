"""Time that passes only when a contestant says so."""

from __future__ import annotations

from benchmarks.instruments.timing import Contestant, OnStep


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def contestant(
        self,
        name: str,
        log: list[str],
        seconds: float,
        *,
        prefill: float = 0.0,
        late: tuple[int, ...] = (0,),
        most_tokens: int | None = None,
    ) -> Contestant:
        """A step every `seconds`; row i has its first token `late[i]` steps after the first step."""

        def generate(tokens: int, on_step: OnStep) -> None:
            log.append(f"{name}{tokens}")
            self.now += prefill
            for step in range(tokens + max(late)):
                self.now += seconds
                on_step({row: [step] for row, first in enumerate(late) if first <= step < first + tokens})

        return Contestant(generate, len(late), most_tokens)
