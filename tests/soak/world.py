"""A tiny base and stacks for it, and what any composition of them answers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brainstacks.base_model import identify_base, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.layers.packed_stack import PackedStack, StackTensors
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.registry import Registry
from tests.engine.driving import fixed, request, run
from tests.tiny import publish_stack, random_stack, save_base, write_router, write_stack

BASE_FLAGS = ("--quantization", "none", "--device", "cpu", "--dtype", "float32")
"""In float32 an answer is the same whatever else is in the batch."""

STEADY_FLAGS = ("--kv-cache-tokens", "8192", "--routing-records", "64")
"""Of what fills up once and stays full, little, so that a server's memory is soon what it will be."""


@dataclass(frozen=True)
class StackFile:
    """One version of a domain, as a client uploads it."""

    path: Path
    domain: str
    digest: str


@dataclass(frozen=True)
class RouterFile:
    """One version of the router, as a client uploads it."""

    path: Path
    digest: str


class World:
    """Everything on disk: a base of two layers, a registry, stack files.

    Args:
        directory: empty, or not there yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.registry_path = directory / "registry"
        self.base = save_base(directory / "tiny-llama")
        self.identity = identify_base(self.base)
        self.registry = Registry(self.registry_path, create=True)
        self.stacks: dict[str, StackTensors] = {}
        self._files = directory / "files"
        self._files.mkdir()

    def file(self, domain: str, seed: int) -> StackFile:
        """A random stack, strong enough that its greedy answers differ from those of other seeds."""
        stack = random_stack(self.identity.dims, seed)
        path = write_stack(self._files / f"{domain}-{seed}.safetensors", self.identity, domain, stack)
        digest = sha256_file(path)
        self.stacks[digest] = stack
        return StackFile(path, domain, digest)

    def router(self, seed: int) -> RouterFile:
        """A random router over what `publish` has published."""
        path = self._files / f"router-{seed}.safetensors"
        write_router(path, self.registry, self.identity, seed)
        return RouterFile(path, sha256_file(path))

    def publish(self, domain: str, seed: int) -> None:
        """Put a stack into the registry by hand, before a server is started."""
        self.registry.publish(self.file(domain, seed).path)

    def publish_router(self) -> None:
        """Put a router into the registry by hand."""
        self.registry.publish_router(self.router(0).path)

    def packed_bytes(self) -> int:
        """Bytes that each of the stacks takes on the device; all have the same shape."""
        return PackedStack.pack(random_stack(self.identity.dims, 0), torch.float32).nbytes


class Oracle:
    """Answers one request at a time, nothing cached, every stack resident.

    Stacks go by digest: each is a domain of its own here, so that all versions can be asked at any time.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._directory = world.directory / "oracle"
        self._registry = Registry(self._directory, create=True)
        base = load_base(world.base, quantization="none", device="cpu", dtype=torch.float32)
        config = EngineConfig(max_batch_size=1, prefix_caching=False)
        self._engine = StepEngine(base, self._registry, config)
        self._names: dict[str, str] = {}
        self._texts: dict[tuple[object, ...], str] = {}

    def encode(self, body: Mapping[str, Any]) -> list[int]:
        """Token ids of a request's `prompt` or `messages`."""
        tokenizer = self._engine.tokenizer
        if tokenizer is None:
            raise ValueError("the tiny base has lost its tokenizer")
        if "messages" in body:
            return tokenizer.encode_chat(body["messages"])
        return tokenizer.encode(body["prompt"])

    def text(self, routing: Mapping[str, Any], body: Mapping[str, Any]) -> str:
        """The greedy answer to `body` with the versions and weights that a response's `routing` names."""
        weights = {routing["stacks"][name]["digest"]: routing["weights"][name] for name in routing["active"]}
        ids, most = self.encode(body), body["max_tokens"]
        key = (tuple(weights.items()), tuple(ids), most, body.get("ignore_eos", False))
        if key not in self._texts:
            composition = fixed(**{self._name(digest): weight for digest, weight in weights.items()})
            asked = request("oracle", ids, composition, max_tokens=most, ignore_eos=key[-1])
            (answer,) = run(self._engine, asked)
            self._texts[key] = answer.text()
        return self._texts[key]

    def _name(self, digest: str) -> str:
        if digest not in self._names:
            name = f"v{len(self._names)}"
            stack = self._world.stacks[digest]
            publish_stack(self._registry, self._world.identity, name, stack, self._directory)
            self._engine.serving.sync()
            self._names[digest] = name
        return self._names[digest]
