"""`brainstacks-train` in one process, or in several as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from brainstacks.stacks.registry import Registry

SECONDS = 600


class Launches:
    """Commands over one recipe of the domains chat and math, each run in a directory of its own.

    Args:
        changes: to the recipe's `round`.
    """

    def __init__(self, directory: Path, base: Path, data: Path, **changes: object) -> None:
        self.directory, self.data = directory, data
        self.recipe = directory / "recipe.yaml"
        recipe = {
            "base": str(base),
            "quantization": "none",
            "data": {"max_tokens": 96, "selection": 12, "validation": 8, "forgetting": 4},
            "stack": {"rank": 2, "alpha": 4.0, "experts": 2, "top_k": 1, "dtype": "float32"},
            "round": {"batch_size": 2, "learning_rate": 2e-3, "warmup_steps": 1, "dropout": 0.1, **changes},
            "router": {
                "prompts": 8, "held_out": 4, "max_tokens": 96, "epochs": 2, "batch_size": 4, "hidden_dim": 16,
                "soft_levels": [1.0, 0.5],
            },
            "domains": [{"name": name, "licence": "CC0"} for name in ("chat", "math")],
        }  # fmt: skip
        self.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, count: int, command: str, run: Path, registry: Path, *options: str
    ) -> subprocess.Popen[str]:
        """Start `command` in `count` processes; what they say is in the launcher's stderr."""
        torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "--")
        arguments: list[str | Path] = [sys.executable, "-m", *(torchrun if count > 1 else ()), "training"]
        arguments += [command, "--recipe", self.recipe, "--data", self.data, "--run", run]
        process = subprocess.Popen(
            [*arguments, "--registry", registry, *options],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def finish(self, count: int, command: str, run: Path, registry: Path, *options: str) -> str:
        """What `command` says on stderr; it is to succeed."""
        process = self.start(count, command, run, registry, *options)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
        return said

    def train(self, count: int, name: str) -> tuple[Path, Registry]:
        """The run's directory, and the registry, of a curriculum that is left alone."""
        run, registry = self.directory / name, self.directory / f"{name}-registry"
        self.finish(count, "curriculum", run, registry)
        return run, Registry(registry)

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


def wait_for_a_step(process: subprocess.Popen[str]) -> None:
    """Read what a run says until it trains."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "tokens/s" in line:
            return
    raise AssertionError("".join(said))
