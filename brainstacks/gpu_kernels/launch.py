"""What all launches share."""

from __future__ import annotations

from functools import cache

import torch
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, where a product (`tl.dot`) of bfloat16 is silently wrong: kernels
take it as `UPCAST` and multiply in float32 then."""

PER_PROCESSOR = 4
"""Programs for each multiprocessor."""


@cache
def programs(device: torch.device) -> int:
    """How many programs of a persistent kernel run at a time. Each takes every so manieth piece of its work, so
    that how much there is decides no launch."""
    if device.type != "cuda":
        return 3  # interpreted, one after the other: more than one, so that sharing the work is tested
    return PER_PROCESSOR * int(torch.cuda.get_device_properties(device).multi_processor_count)
