"""A kernel as a launch compiles it, so that it can be compiled, and looked at, where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton.compiler import ASTSource

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""Of what is served, in Triton's spelling."""


@dataclass(frozen=True)
class Configuration:
    """Attributes:
    name: for people.
    kernel: a `triton.jit` function.
    types: of its arguments that are no constants: "*bf16", "i32", ...
    constants: values of the others; what is in neither is None.
    unaligned: arguments of `types` that need not be multiples of 16.
    warps, stages: of the launch.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    unaligned: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}

    def source(self) -> ASTSource:
        """For `triton.compile(source, target, options)`, as a launch with aligned tensors specialises it."""
        names = self.kernel.arg_names
        return ASTSource(
            self.kernel,
            {name: self.types.get(name, "constexpr") for name in names},
            {(at,): self.constants.get(name) for at, name in enumerate(names) if name not in self.types},
            {
                (names.index(name),): [["tt.divisibility", 16]]
                for name in self.types
                if name not in self.unaligned
            },
        )
