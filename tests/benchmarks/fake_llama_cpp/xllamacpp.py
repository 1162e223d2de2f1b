"""In the place of the package xllamacpp: 1 ms per prompt token, 10 ms per step and unit of scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

REUSED = 999
"""Of a prompt that begins so, one token counts as known already."""


class CommonParams:
    def __init__(self) -> None:
        self.model = SimpleNamespace(path="")
        self.cpuparams = SimpleNamespace(n_threads=-1)
        self.cpuparams_batch = SimpleNamespace(n_threads=-1)
        self.lora_adapters: list[Any] = []


class CommonAdapterLoraInfo:
    def __init__(self, path: str, scale: float) -> None:
        if not path.endswith(".gguf"):
            raise ValueError(f"{path} is no adapter")


class Server:
    def __init__(self, params: Any) -> None:
        self._params = params

    def handle_completions(self, request: dict[str, Any]) -> dict[str, Any]:
        prompts, tokens = request["prompt"], request["max_tokens"]
        if len(prompts) != self._params.n_parallel:
            return {"error": {"message": "another number of prompts than slots"}}
        scale = 1.0 + sum(each["scale"] for each in request["lora"])
        return {
            "timings": {
                "prompt_n": len(prompts[0]) - (prompts[0][0] == REUSED),
                "prompt_ms": 1.0 * len(prompts[0]) * len(prompts),
                "predicted_n": tokens,
                "predicted_ms": 10.0 * (tokens - 1) * scale,
            }
        }


def get_system_info() -> str:
    return "FAKE = 1"
