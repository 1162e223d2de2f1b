"""What is told of an HTTP request when it is over: in the log, in the metrics and in its trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brainstacks.engine.request import Timing


@dataclass(frozen=True)
class Generation:
    """What a request had generated.

    Attributes:
        composition: the mode and the weight of each active domain, as `x-brainstacks-routing` has them; of
            several prompts the first one's.
        domains: active in any of its prompts.
        finish_reason: of its completions, each once; `abort` where one did not come to its end.
        timings: of those that did.
    """

    composition: str
    domains: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    timings: tuple[Timing, ...] = ()


@dataclass
class Summary:
    """Filled in while the request is answered; `request.state.summary`.

    Attributes:
        key: the name of its API key; empty without.
        client: the address that it came from; empty where that is unknown.
        path: percent-encoded, its first 200 characters.
        begin, end: seconds, `time.perf_counter`.
        route: the path's template; None where no route was found.
        status: of the reply; 499 where the client left before it had one.
        error: the code of the error that it was answered with, or that broke its stream off.
    """

    request_id: str
    key: str
    client: str
    method: str
    path: str
    begin: float
    end: float = 0.0
    route: str | None = None
    status: int = 499
    error: str | None = None
    generation: Generation | None = None
    trace_id: str | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def fields(self) -> dict[str, Any]:
        """For the log: what there is, by the names of `log.FIELDS`."""
        found: dict[str, Any] = {
            "request_id": self.request_id,
            "key": self.key,
            "client": self.client,
            "route": self.route,
            "status": self.status,
            "duration": round(self.seconds, 4),
            "error": self.error,
            "trace_id": self.trace_id,
        }
        if self.generation is not None:
            found |= {
                "composition": self.generation.composition,
                "prompt_tokens": self.generation.prompt_tokens,
                "completion_tokens": self.generation.completion_tokens,
                "finish_reason": self.generation.finish_reason,
            }
        return {name: value for name, value in found.items() if value not in (None, "")}
