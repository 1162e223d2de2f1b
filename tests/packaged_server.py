"""The real server: a process on the packaged base and the demo registry."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch

from brainstacks.base_model import identify_base
from brainstacks.config import StackConfig
from brainstacks.stacks.artifact import StackMetadata, stack_shapes
from brainstacks.stacks.tensors import save_stack
from tests.documents import ROOT

BASE = "smollm2-135m-instruct"
PROMPTS = {
    "chat": "What are some fun things to do on a rainy weekend?",
    "code": "Write a Python function to find the maximum of two numbers.",
    "math": "Tom has 3 boxes with 12 pencils each. He gives away 7 pencils. How many pencils are left?",
    "medical": "What are the symptoms of Asthma ?",
    "reasoning": "Could a penguin survive in the Sahara desert?",
}


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]

    def openai(self) -> Any:
        """The official client; untyped, because `routing` is an extra of ours."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="inference-key", max_retries=0)

    def admin(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": "Bearer admin-key"}, timeout=120)


@contextmanager
def running(registry: Path) -> Iterator[Server]:
    """A server over a copy of the demo registry, made at `registry`; ends by draining."""
    shutil.copytree(ROOT / "stacks_registry", registry)
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "--port", "0", "--registry", str(registry)],
        env={**os.environ, "BRAINSTACKS_API_KEY": "inference-key", "BRAINSTACKS_ADMIN_KEY": "admin-key"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    url = None
    log = []
    for line in process.stderr:
        log.append(line)
        found = re.search(r"running on (http://\S+:\d+)", line)
        if found:
            url = found[1]
            break
    if url is None:
        pytest.fail("the server did not start:\n" + "".join(log))
    drain = threading.Thread(target=process.stderr.read, daemon=True)  # a full pipe would stop the server
    drain.start()
    yield Server(url, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0, "SIGTERM drains and exits 0"
    drain.join()
    process.stderr.close()


def random_stack(folder: Path, domain: str, fingerprint: str | None = None, seed: int = 0) -> Path:
    """A small random stack for the packaged base."""
    identity = identify_base("packaged:smollm2-135m-instruct")
    base = identity.ref
    if fingerprint is not None:
        base = type(base)(base.id, fingerprint, base.architecture)
    config = StackConfig(rank=1, experts=2, top_k=1, layers=identity.layers)
    metadata = StackMetadata(domain=domain, rounds=1, config=config, dims=identity.dims, base=base)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.01 * torch.randn(shape, generator=generator, dtype=torch.float32)
        for name, shape in stack_shapes(metadata)
    }
    path = folder / f"{domain}.safetensors"
    save_stack(path, metadata, tensors)
    return path
