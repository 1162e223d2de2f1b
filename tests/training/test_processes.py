"""Several processes, as any launcher starts them: the steps are those of one process that accumulates."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from tests.tiny import write_records

pytestmark = pytest.mark.slow


def train(directory: Path, base: Path, name: str, processes: int, accumulation: int) -> Registry:
    recipe = {
        "base": str(base),
        "quantization": "none",
        "data": {"max_tokens": 64, "selection": 6, "forgetting": 4},
        "stack": {"rank": 2, "alpha": 4.0, "experts": 2, "top_k": 1, "dtype": "float32"},
        "round": {
            "steps": 4, "batch_size": 4, "accumulation": accumulation, "learning_rate": 2e-3,
            "eval_every": 2, "warmup_steps": 1,
        },
        "domains": [{"name": "chat", "licence": "CC0"}, {"name": "math", "licence": "CC0"}],
    }  # fmt: skip
    path, registry = directory / f"{name}.yaml", directory / f"{name}-registry"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    arguments: list[str | Path] = ["--recipe", path, "--data", directory / "data", "--run", directory / name]
    command: list[str | Path] = [sys.executable, "-m", "training", "curriculum", "--registry", registry]
    started = [
        subprocess.Popen(
            [*command, *arguments], env=os.environ | rank, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in ranks(processes)
    ]
    for process in started:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    return Registry(registry)


def ranks(count: int) -> list[dict[str, str]]:
    """What a launcher tells each process by its environment; nothing to a single one."""
    if count == 1:
        return [{"OMP_NUM_THREADS": "1"}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"OMP_NUM_THREADS": "1", "RANK": str(i), "LOCAL_RANK": str(i), **together} for i in range(count)]


def test_two_processes_train_what_one_with_twice_the_accumulation_does(
    tiny_directory: Path, tmp_path: Path
) -> None:
    for domain, answer in (("chat", "well hello"), ("math", "12345678")):
        rows = [(f"{domain} {i}", answer) for i in range(30)]
        write_records(tmp_path / "data" / domain / "train.jsonl", rows[:24])
        write_records(tmp_path / "data" / domain / "validation.jsonl", rows[24:])
    one = train(tmp_path, tiny_directory, "one", processes=1, accumulation=2)
    two = train(tmp_path, tiny_directory, "two", processes=2, accumulation=1)
    for domain in ("chat", "math"):
        expected, found = (
            load_stack(r.blob_path(r.snapshot().domain(domain).current.digest)).tensors for r in (one, two)
        )
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-2, msg=name)
    identity = json.loads((tmp_path / "two" / "run.json").read_text(encoding="utf-8"))
    assert identity["processes"] == 2
