"""Train a step, and measure outcomes, on a device that is not there, and print what a GPU would have to do.

torch's fake tensors have shapes and a device, and no values: operands on two devices raise, and so does a
result whose shape depends on values. A process of its own, for what it records is of all that happens in it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.instruments.fake_gpu import device
from brainstacks.base_identity import BaseIdentity
from brainstacks.base_model import BaseModel
from brainstacks.layers.bank import StackBank
from brainstacks.layers.projections import find_sites, projection_dims
from brainstacks.tokenizer import ChatTokenizer
from tests.tiny import byte_tokenizer, random_stack, tiny_model
from tests.training.examples import learnable_examples
from tests.training.workshop import task_of, workshop_of
from training.rounds.active_stack import ActiveStack
from training.rounds.earlier_stacks import EarlierStacks
from training.rounds.training import RoundTraining
from training.router.stacked_base import StackedBase
from training.runs.processes import Processes

GPU = device()
Found = dict[str, list[str]]
OURS = ("/training/", "/brainstacks/")

STOPS = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward",
    "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward", "nll_loss2d_backward",
    "_ctc_loss_backward", "_embedding_bag_backward", "put", "put_", "histc", "bincount", "median",
    "nanmedian", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "cumsum", "cumsum_",
}  # fmt: skip
"""What `torch.use_deterministic_algorithms` lists as raising; `cumsum` of floats alone."""

VARIES = {
    "index_add", "index_add_", "scatter_add", "scatter_add_", "scatter", "scatter_", "scatter_reduce",
    "scatter_reduce_", "index_put", "index_put_", "_index_put_impl_", "index_copy", "index_copy_",
    "index_select_backward", "embedding_dense_backward", "replication_pad1d_backward",
    "replication_pad2d_backward", "replication_pad3d_backward", "max_pool3d_with_indices_backward",
}  # fmt: skip
"""What it lists as another algorithm then: where places are written twice, results vary without it."""


class Recorder(TorchDispatchMode):
    """Records, of operations on the device, those that the host waits for and those that add in any order.

    Attributes:
        waits: the lines of ours that read from the device, or copy to it from memory that is not pinned.
        stops, varies: names of operations.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode
        self.waits: set[str] = set()
        self.stops: set[str] = set()
        self.varies: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            if args[0].device == GPU:
                self._wait()
            return 1.0
        result = func(*args, **kwargs)
        there = [t for t in (*args, *kwargs.values(), result) if isinstance(t, Tensor)]
        devices = {t.device for t in there if t.dim() > 0 or t.device == GPU}
        if GPU in devices:
            name = func.overloadpacket.__name__
            if name in STOPS and (not name.startswith("cumsum") or result.is_floating_point()):
                self.stops.add(name)
            if name in VARIES:
                self.varies.add(name)
            if len(devices) > 1 and not kwargs.get("non_blocking", name == "copy_" and args[2:] == (True,)):
                self._wait()
        return result

    def _fake(self, tensor: Tensor) -> Tensor:
        """Of numpy's tensors, which the mode does not know."""
        return tensor if isinstance(tensor, FakeTensor) else self._mode.from_tensor(tensor)

    def _wait(self) -> None:
        frames = [f for f in traceback.extract_stack() if any(part in f.filename for part in OURS)]
        ours = [f for f in frames if "/site-packages/" not in f.filename and "/tests/" not in f.filename]
        self.waits.add(f"{Path(ours[-1].filename).name}: {ours[-1].line}")

    def found(self) -> Found:
        """What was recorded, for JSON."""
        return {name: sorted(getattr(self, name)) for name in ("waits", "stops", "varies")}


def on_gpu(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """`module` with weights that are on the device, and have no values."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake: Any = FakeTensor(mode, tensor.detach().to("meta"), GPU)
                    trained = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, tensor.requires_grad) if trained else fake
    return module


def base_on_gpu(family: str, mode: FakeTensorMode) -> BaseModel:
    model: Any = on_gpu(tiny_model(family, attn_implementation="sdpa"), mode)
    sites = find_sites(model)
    identity = BaseIdentity("tiny", "f" * 64, family, 2, projection_dims(sites), 32)
    return BaseModel(model, None, "tiny", identity, "none", GPU, torch.float32, sites)


def step(family: str, **options: Any) -> Found:
    """One optimiser step on top of a frozen stack; `options` as for `task_of`."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    base = base_on_gpu(family, mode)
    task = task_of(**options)
    with mode:
        bank = StackBank(GPU, torch.float32)
        bank.add("0", random_stack(base.identity.dims, 5))
        task = dataclasses.replace(task, earlier=EarlierStacks(bank, ["0"], "all", 0))
        workshop = dataclasses.replace(workshop_of(base), processes=Processes(GPU))
        to: Callable[..., Any] = lambda self, device: on_gpu(self, mode)  # noqa: E731
        ActiveStack.to = to  # type: ignore[method-assign]  # torch's own swaps tensors, and fake ones are held
        training = RoundTraining(workshop, task)
        with Recorder(mode) as recorder:
            training.step()
            found: Found = recorder.found()
    return found


def outcomes(family: str) -> Found:
    """Losses of examples under three compositions."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    base = base_on_gpu(family, mode)
    examples = learnable_examples(3)
    tokenizer = ChatTokenizer(byte_tokenizer(), (258,))
    with mode:
        bank = StackBank(GPU, torch.float32)
        bank.add("math", random_stack(base.identity.dims, 5))
        hooks = workshop_of(base).hooks
        stacked = StackedBase(base, tokenizer, hooks, bank, {"math": "d"})
        with Recorder(mode) as recorder:
            stacked.nll(examples, [{}, {"math": 0.4}, {"math": 1.0}])
            found: Found = recorder.found()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    first, *others = sys.argv[1:]
    print(
        json.dumps(
            {
                **{f"a step of {family}": step(family) for family in (first, *others)},
                "recomputed": step(first, gradient_checkpointing=True),
                "packed, in two forwards": step(first, packing=True, accumulation=2),
                "outcomes": outcomes(first),
            }
        )
    )
