"""A CUDA device where there is none: tensors without values, and a record of what would wait for it.

Its tensors say `cuda`, so that code which asks for that takes its way; few operators compute with them on a
build for CPUs. `benchmarks.instruments.fake_gpu` has a device of its own, which runs whole steps and is not
`cuda`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)

WAITING = (
    "aten._local_scalar_dense",
    "aten.item",
    "aten.nonzero",
    "aten.masked_select",
    "aten.equal",
    "aten.is_nonzero",
)
"""Operators whose result the host has to know before it goes on."""


@dataclass
class Operators(TorchDispatchMode):
    """The operators inside, and how many values went which way.

    Attributes:
        names: all.
        waiting: those that wait for the device.
        to_device, to_host: copies; of the first, `pinned` were made ready in pinned memory.
    """

    names: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    to_device: int = 0
    to_host: int = 0
    pinned: int = 0

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.names.append(name)
        masks = [a for a in args[1:2] if isinstance(a, list | tuple)] if name.startswith("aten.index") else []
        by_mask = any(isinstance(i, Tensor) and i.dtype == torch.bool for indices in masks for i in indices)
        if by_mask or name.startswith(WAITING):
            self.waiting.append(name)
        result = func(*args, **(kwargs or {}))
        if name.startswith(("aten._to_copy", "aten.to.")) and args[0].device != result.device:
            there, here = args[0].device, result.device
            self.to_device += here.type == "cuda"
            self.to_host += here.type == "cpu"
            if not (kwargs or {}).get("non_blocking"):
                self.waiting.append(f"{name} from {there} to {here}")
        return result


class _Lists(TorchFunctionMode):
    """Notes `tolist`, which is no operator."""

    def __init__(self, operators: Operators) -> None:
        super().__init__()
        self._operators = operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            self._operators.waiting.append("tolist")
        return func(*args, **(kwargs or {}))


class _Indexing(TorchFunctionMode):
    """`tensor[...]` by numbers, slices and None as the operators that it stands for: PyTorch's own way there
    wants CUDA itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, index = args
        axis = 0
        for one in index if isinstance(index, tuple) else (index,):
            if one is None:
                tensor = tensor.unsqueeze(axis)
            elif isinstance(one, int):
                tensor = tensor.select(axis, one)
                continue
            elif isinstance(one, slice):
                start, stop, step = one.indices(tensor.shape[axis])
                if step != 1:
                    raise NotImplementedError(f"no test slices by {step} yet; add it here")
                tensor = tensor.narrow(axis, start, max(0, stop - start))
            else:
                raise NotImplementedError(f"no test indexes by {type(one).__name__} yet; add it here")
            axis += 1
        return tensor


class _Event:
    def record(self, stream: object) -> None: ...
    def synchronize(self) -> None: ...


@contextmanager
def watched() -> Iterator[Operators]:
    """The operators inside, on tensors that have values."""
    operators = Operators()
    with operators, _Lists(operators):
        yield operators


@contextmanager
def fake_cuda() -> Iterator[Operators]:
    """Tensors made inside have no values, on `DEVICE` as on the CPU; what asks for one raises."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), watched() as operators, _Indexing():

        def pin_memory(tensor: Tensor) -> Tensor:
            operators.pinned += 1
            return tensor

        patch.setattr(Tensor, "pin_memory", pin_memory)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "current_stream", lambda device: None)
        yield operators
