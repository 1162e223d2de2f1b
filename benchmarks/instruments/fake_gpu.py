"""A GPU that computes nothing: what a step would do there is seen, and nothing more.

Tensors on it have shapes, dtypes and strides, and no values (PyTorch's fake tensors, on a backend of our own,
since a build for CPUs has none for CUDA). What depends on a value, for which the host would have to wait on a
GPU, raises: `.item()`, `.tolist()`, `if tensor`, `nonzero`, an index that is a mask. So do tensors of two
devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brainstacks.base_identity import BaseIdentity
from brainstacks.base_model import BaseModel
from brainstacks.device_map import Part
from brainstacks.engine.runner import staging
from brainstacks.layers.fused_norms import fuse
from brainstacks.layers.model_parts import connect, module_devices
from brainstacks.layers.projections import decoder_layers, find_sites, projection_dims


@cache
def device() -> torch.device:
    """The GPU, for this process."""
    from torch.utils import backend_registration

    class Backend(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            """What autocast asks every device of the process for."""
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend("gpu", Backend())
    return torch.device("gpu:0")


class FakeGpu:
    """Everything within `on` happens on it.

    Attributes:
        mode: of the fake tensors.
    """

    def __init__(self) -> None:
        self.device = device()
        # Arrays of the host are real; what is made of them there is not.
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def tensor(self, meta: Tensor, device: torch.device) -> Tensor:
        """One there of that shape."""
        return FakeTensor(self.mode, meta.detach().to("meta"), device)

    def base(
        self, config: Any, dtype: torch.dtype = torch.bfloat16, parts: tuple[Part, ...] = ()
    ) -> BaseModel:
        """A base there, of any size; or its layers on several such GPUs, the first of which is `device`."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        places = module_devices(model, parts) if parts else {"": self.device}
        for where, device in places.items():
            for module in model.get_submodule(where).modules():
                for held in (module._parameters, module._buffers):
                    for name, tensor in held.items():
                        if tensor is not None:
                            held[name] = self.tensor(tensor, device)
        if parts:
            connect(model, parts)
        else:
            fuse(model)
        sites = find_sites(model)
        layers = len(decoder_layers(model))
        identity = BaseIdentity(
            "fake", "f" * 64, config.model_type, layers, projection_dims(sites), config.hidden_size
        )
        return BaseModel(model, None, "fake", identity, "none", self.device, dtype, sites, device_map=parts)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the block, tensors are made there."""

        def host_memory(size: int, device: torch.device) -> tuple[Tensor, NDArray[np.uint8]]:
            return torch.zeros(size, dtype=torch.uint8), np.zeros(size, np.uint8)

        before, staging.host_memory = staging.host_memory, host_memory
        try:
            with torch.inference_mode(), self.mode:
                yield
        finally:
            staging.host_memory = before


VIEWS = frozenset({
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "device", "expand",
    "lift_fresh", "narrow", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unflatten", "unsqueeze", "view",
})  # fmt: skip
"""Operators that compute nothing."""

ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})

COPIES = frozenset({"_to_copy", "clone", "contiguous", "reshape", "to"})
"""Operators that compute where their result is not their input."""


class Launches(TorchDispatchMode):
    """Notes the operators that a GPU would have to run.

    Attributes:
        names: of them, in order.
        calls: of each its name, then of each tensor among its arguments its storage, offset, shape and
            strides. Storages are numbered in the order in which they are first seen.
        nbytes: of each the bytes of the tensors among its arguments and results.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.calls: list[tuple[Any, ...]] = []
        self.nbytes: list[int] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no storage's identity is given again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        nothing = name in VIEWS | ALLOCATIONS
        if name in COPIES and isinstance(result, Tensor):
            nothing = any(_storage(result) == _storage(one) for one in tensors)
        if not nothing:
            self.names.append(name)
            self.calls.append((name, *(self._seen(tensor) for tensor in tensors)))
            made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
            self.nbytes.append(sum(one.numel() * one.element_size() for one in [*tensors, *made]))
        return result

    def _seen(self, tensor: Tensor) -> tuple[Any, ...]:
        self._kept.append(tensor)
        number = self._numbers.setdefault(_storage(tensor), len(self._numbers))
        return number, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _storage(tensor: Tensor) -> int:
    number: int = tensor.untyped_storage()._cdata
    return number
