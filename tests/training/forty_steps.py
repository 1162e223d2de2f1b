"""Train a small round, or go on with it, and print the hashes of all that it is (`test_forty_steps`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brainstacks.base_model import load_base
from tests.training.workshop import task_of, workshop_of
from training.rounds.inner_loop import train_round
from training.runs import checkpoint
from training.runs.log import RunLog, canonical
from training.runs.signals import Interrupted

STEPS = 40


class StopAfter:
    """A stop that is asked for during the given step: looked at once in each."""

    def __init__(self, step: int | None) -> None:
        self._left = step

    @property
    def requested(self) -> bool:
        if self._left is not None:
            self._left -= 1
        return self._left == 0


def run(base: Path, directory: Path, stop_after: int | None) -> dict[str, str]:
    """Hashes of weights, optimiser, schedule, RNG, data cursor and log after the last step."""
    torch.set_num_threads(1)
    directory.mkdir(exist_ok=True)
    task = task_of(steps=STEPS, accumulation=2, eval_every=10, checkpoint_every=10, patience=99, spike=99.0)
    stop: Any = StopAfter(stop_after)
    with RunLog(directory) as log:
        loaded = load_base(base, quantization="none", device="cpu", dtype=torch.float32)
        workshop = dataclasses.replace(workshop_of(loaded, log), stop=stop)
        try:
            train_round(workshop, task, directory / "checkpoints")
        except Interrupted:
            return {}
    found = checkpoint.load(directory / "checkpoints" / f"step-{STEPS:06d}")
    if found is None:
        raise SystemExit(f"no checkpoint of step {STEPS}")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(found.tensors.items()):
        parts.setdefault(name.partition("/")[0], {})[name] = tensor
    state = {k: v for k, v in found.state["round"].items() if k != "log_position"}
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        **{part: _hash(*(t.numpy().tobytes() for t in tensors.values())) for part, tensors in parts.items()},
        "random numbers": _hash(torch.get_rng_state().numpy().tobytes()),
        "data cursor and history": _hash(json.dumps(state).encode()),
        "settings of the optimiser": _hash(json.dumps(found.state["optimizer"]).encode()),
        "schedule": _hash(json.dumps(found.state["schedule"]).encode()),
        "log": _hash(*(canonical(line).encode() for line in lines)),
    }


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


if __name__ == "__main__":
    base, directory, *stop_after = sys.argv[1:]
    found = run(Path(base), Path(directory), int(stop_after[0]) if stop_after else None)
    print(json.dumps(found))
