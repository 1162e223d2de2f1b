"""llama.cpp as a peer: its own server (the package xllamacpp), in a process of its own.

In one process, its OpenMP team and torch's would be more threads than there are cores, which slows both.
All prompts of a batch are given at once, so that they are read in one batch and decode in step. It times
itself, and nothing of Python is in its figures.

This module is also the program of that process, and imports no torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.timing import Run, SelfTimed

PACKAGE = "xllamacpp"
STEP_TOKENS = 2048
"""llama.cpp's own default of `n_batch`: most tokens that one of its steps takes."""
CONTEXT_STEP = 256
"""llama.cpp rounds the context up to whole ones of these."""


@dataclass(frozen=True)
class Settings:
    """Of a server. All others are llama.cpp's defaults: flash attention where it finds it faster (`auto`),
    `n_ubatch` 512, keys and values in float16, weights repacked where it can.

    Attributes:
        gguf: the base.
        threads: for reading prompts and for decoding.
        slots: sequences that decode at once.
        context: tokens of prompt and answer per sequence.
        adapters: GGUF files of LoRA adapters, loaded beside the base.
    """

    gguf: str
    threads: int
    slots: int
    context: int
    adapters: tuple[str, ...] = ()


class LlamaCpp:
    """The process; a context manager.

    Attributes:
        system: what llama.cpp says that it was compiled for and uses.

    Raises:
        RuntimeError: it did not start, or refused a request.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with ExitStack() as stack:
            self._process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", __name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            stack.callback(self._process.kill)  # does nothing when it has ended
            self.system = str(self._ask(asdict(settings))["system"])
            self._open = stack.pop_all()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def contestant(self, prompts: Sequence[Sequence[int]], scales: Sequence[float] = ()) -> SelfTimed:
        """Greedy, no reuse of earlier prompts, all prompts of one length.

        Args:
            scales: of the adapters, the same for all rows; none for the base alone.
        """

        def run(tokens: int) -> Run:
            asked = {"prompts": [list(p) for p in prompts], "tokens": tokens, "scales": list(scales)}
            times = self._ask(asked)
            decoded = len(prompts) * (tokens - 1)
            return Run((), times["prompt_ms"] / 1000, times["predicted_ms"] / 1000, decoded)

        return SelfTimed(run)

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process of llama.cpp has no pipes")
        print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended; see its messages above"}
        if "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']}")
        return dict(answer)


def context_for(prompt_tokens: int, tokens: int) -> int:
    """Tokens of context per sequence."""
    return -(-(prompt_tokens + tokens) // CONTEXT_STEP) * CONTEXT_STEP


def _start(settings: Settings) -> Any:
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = settings.gguf
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.n_parallel = settings.slots
    params.n_ctx = settings.slots * settings.context
    params.n_batch = max(STEP_TOKENS, params.n_ctx)  # all prompts in one step: their rows decode in step
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.lora_adapters = [llama.CommonAdapterLoraInfo(path, 0.0) for path in settings.adapters]
    params.verbosity = -1
    return llama.Server(params), llama.get_system_info()


def _complete(server: Any, prompts: list[list[int]], tokens: int, scales: list[float]) -> dict[str, Any]:
    answer = server.handle_completions(
        {
            "prompt": prompts,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "lora": [{"id": number, "scale": scale} for number, scale in enumerate(scales)],
        }
    )
    if "timings" not in answer:
        return {"error": str(answer.get("error", answer))}
    times: dict[str, Any] = answer["timings"]
    expected = (len(prompts[0]), tokens)
    if (times["prompt_n"], times["predicted_n"]) != expected:
        return {
            "error": f"it read and generated {times['prompt_n'], times['predicted_n']} and not {expected}"
        }
    return times


def main() -> None:
    """Settings, then requests, as lines of JSON on stdin; an answer to each on stdout."""
    lines = map(json.loads, sys.stdin)
    server, system = _start(Settings(**next(lines)))
    print(json.dumps({"system": system}), flush=True)
    for asked in lines:
        print(json.dumps(_complete(server, **asked)), flush=True)


if __name__ == "__main__":
    main()
