"""Power cuts for the trainer: killed at every write and at random times, it ends in the very same bytes."""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from tests.soak.outcome import Outcome, Progress, Say
from tests.tiny import save_base, write_records

WRITES = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
"""Functions of `os` before which a child can be killed: all that makes a change last, or undoes one."""

LONGEST = 240.0
"""Seconds that one run may take."""

PRELOADED = (
    "training.curriculum.outer_loop",
    "tests.tiny",
    "bitsandbytes",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
)
"""Modules that a run needs: imported once, and not by each of hundreds of children."""


def training_kills(
    directory: Path, count: int, seconds: float, seed: int, say: Say, writes: int | None = None
) -> Outcome:
    """Kill a small curriculum before every write, and at `count` random times.

    After each kill the run is started again, in a new process, and must end with the hashes of a run that
    nobody disturbed: stacks, rounds, log, forgetting matrix and registry.

    Args:
        writes: so many of the writes instead, spread over all there are.
    """
    outcome, progress, rng = Outcome(), Progress(say), random.Random(seed)
    setting = _prepare(directory, seed)
    begin = perf_counter()
    made = _run(setting, directory / "undisturbed", None)
    longest = perf_counter() - begin
    expected = hashes(directory / "undisturbed")
    outcome.figures |= {"writes_in_a_run": made, "undisturbed_s": longest, "files_compared": len(expected)}
    wanted = min(writes or made, made)
    kills: list[int | None] = [1 + i * made // wanted for i in range(wanted)]
    kills += [None] * count
    for i, write in enumerate(kills):
        if perf_counter() - begin > seconds:
            outcome.counts["left out for want of time"] = len(kills) - i
            break
        run = directory / f"killed-{i}"
        if write is not None:
            what = f"before write {write}"
            outcome.require(_run(setting, run, write) < 0, f"{what}: not killed")
        else:
            delay, longest = _kill_at_random(setting, run, longest, rng)
            what = f"after {delay:.3f} s"
        outcome.counts["killed before a write" if write is not None else "killed at a random time"] += 1
        resumed = _run(setting, run, None) >= 0
        outcome.require(resumed, f"{what}: could not be resumed")
        found = hashes(run) if resumed else {}
        wrong = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        outcome.require(not wrong, f"{what}: {', '.join(wrong)} differ")
        shutil.rmtree(run)
        progress.at((i + 1) / len(kills), f"{i + 1} of {len(kills)} kills")
    return outcome


def _kill_at_random(
    setting: dict[str, str], run: Path, longest: float, rng: random.Random
) -> tuple[float, float]:
    """Kill the run in `run` at a time drawn from 0..`longest` seconds; draw anew where it was done before.

    Returns:
        the time of the kill, and how long a run takes at most, by what was seen (seconds).
    """
    while True:
        delay = rng.uniform(0.0, longest)
        if _run(setting, run, None, delay) < 0:
            return delay, longest
        longest = delay
        shutil.rmtree(run)


def hashes(run: Path) -> dict[str, str]:
    """Relative name -> SHA-256 of all that a run leaves, without clock times and what hangs on them."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and path.name != "lock" and "tensorboard" not in name:
            found[name] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    from training.runs.log import canonical

    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        return "\n".join(canonical(line) for line in content.decode().splitlines()).encode()
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
    return content


def _without_times(value: Any) -> Any:
    """Without times of publication, positions in the log (its timings vary in length), and their digests."""
    if isinstance(value, dict):
        times = ("created", "log_position", "state.json")
        return {key: _without_times(item) for key, item in value.items() if key not in times}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _prepare(directory: Path, seed: int) -> dict[str, str]:
    """A tiny base, two domains of data, and what stages of `rl:` learn from."""
    rng = random.Random(seed)
    save_base(directory / "base")
    for domain, answer in (("chat", "well hello"), ("math", "12345678")):
        rows = [("".join(rng.choices("abcdefgh", k=6)) + str(i), answer) for i in range(30)]
        write_records(directory / "data" / domain / "train.jsonl", rows[:24])
        write_records(directory / "data" / domain / "validation.jsonl", rows[24:])
    prompts = ["".join(rng.choices("mnopqr", k=6)) + str(i) for i in range(16)]
    pairs = [{"prompt": p, "chosen": "well hello", "rejected": "12345678"} for p in prompts]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    questions = [{"prompt": prompt, "answer": "8"} for prompt in prompts]
    (directory / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return {name: str(directory / name) for name in ("base", "data", "pairs.jsonl", "questions.jsonl")}


def _recipe(setting: dict[str, str]) -> dict[str, Any]:
    stage = {"steps": 5, "batch_size": 2, "learning_rate": 4e-3, "warmup_steps": 1, "eval_every": 2}
    stage |= {"held_out": 4, "max_nll_rise": 9.0}
    pairs = {"method": "dpo", "data": setting["pairs.jsonl"]}
    answers = {"group_size": 4, "max_new_tokens": 4, "updates": 2, "beta": 0.1, "min_gain": 0.0}
    rewards = {"method": "grpo", "data": setting["questions.jsonl"], **answers}
    return {
        "base": setting["base"],
        "quantization": "none",
        "earlier_stacks": "sampled",
        "max_rounds": 2,
        "min_gain": 0.0001,
        "null_space": {"directions": 4, "samples": 8},
        "data": {"max_tokens": 64, "selection": 6, "forgetting": 4},
        "stack": {"rank": 2, "alpha": 4.0, "experts": 2, "top_k": 1, "dtype": "float32"},
        "round": {
            "steps": 5,
            "batch_size": 4,
            "accumulation": 2,
            "learning_rate": 4e-3,
            "warmup_steps": 1,
            "eval_every": 2,
            "checkpoint_every": 3,
        },
        "domains": [
            {"name": "chat", "licence": "CC0", "max_rounds": 1, "rl": {**stage, **pairs}},
            {"name": "math", "licence": "CC0", "rl": [{**stage, **rewards}]},
        ],
    }


def _run(setting: dict[str, str], run: Path, write: int | None, delay: float | None = None) -> int:
    """Start the curriculum in a new process; kill it before its `write`th write, or after `delay` seconds.

    Returns:
        the writes it made, or -1 when it was killed.

    Raises:
        RuntimeError: it ended in another way, or not at all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(setting, str(run), write, there))
    process.start()
    there.close()
    process.join(delay if delay is not None else LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
        if delay is None:
            raise RuntimeError(f"the run {run.name} took longer than {LONGEST:.0f} s")
    if process.exitcode == -signal.SIGKILL:
        return -1
    if process.exitcode != 0:
        said = run.with_name(f"{run.name}.log").read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"the run {run.name} ended with status {process.exitcode}: {said}")
    return int(here.recv())


def _child(setting: dict[str, str], run: str, write: int | None, writes: Any) -> None:
    import torch

    from brainstacks.stacks.registry import Registry
    from training.curriculum.outer_loop import run_curriculum
    from training.recipe.recipe import recipe_from

    gc.freeze()  # what is imported need not be looked through again by every child
    torch.set_num_threads(1)
    os.dup2(os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    counted = _Counted(write)
    for name in WRITES:
        setattr(os, name, counted.before(getattr(os, name)))
    directory = Path(run)
    registry = Registry(directory / "registry", create=True)
    run_curriculum(
        recipe_from(_recipe(setting)),
        registry,
        directory / "run",
        Path(setting["data"]),
        report=lambda _: None,
    )
    writes.send(counted.count)


class _Counted:
    """Counts calls, and kills this process before one of them."""

    def __init__(self, last: int | None) -> None:
        self.count = 0
        self._last = last

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted
