"""What all launches share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter. A product (`tl.dot`) of bfloat16 is silently wrong there:
kernels take this as `UPCAST`, and multiply in float32 then."""

PER_PROCESSOR = 4
"""Programs for each multiprocessor."""


@cache
def programs(device: torch.device) -> int:
    """How many programs of a persistent kernel run at a time.

    Each takes every so manieth piece of the work, so that how much there is decides no launch.
    """
    if device.type != "cuda":
        return 3  # interpreted, one after the other: more than one, so that sharing the work is tested
    return PER_PROCESSOR * int(torch.cuda.get_device_properties(device).multi_processor_count)


_LIBRARY = torch.library.Library("brainstacks", "DEF")


def operator(schema: str, launch: Callable[..., None]) -> Callable[..., None]:
    """An operator `brainstacks::...` of torch's that calls `launch`, and does nothing on fake tensors.

    Args:
        schema: `name(Tensor x, Tensor(a!) written, int n) -> ()`.
    """
    name = _LIBRARY.define(schema)
    _LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, lambda *args: None, "Meta")
    found: Callable[..., None] = getattr(torch.ops.brainstacks, name).default
    return found
