"""How long a launch ought to take on a GPU, by what is known of its memory and what is assumed. A model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Gpu:
    """Attributes, all by data sheets:
    bandwidth: of its memory, bytes/s.
    flops: of dense bfloat16 products with float32 sums, 1/s.
    capability, processors: its kind and how many multiprocessors it has.
    shared: bytes of shared memory of a multiprocessor.
    """

    name: str
    bandwidth: float
    flops: float
    capability: tuple[int, int]
    processors: int
    shared: int


H200 = Gpu("H200", 4.8e12, 989e12, (9, 0), 132, 228 << 10)
RTX_4090 = Gpu("RTX 4090 (24 GB)", 1.008e12, 165e12, (8, 9), 128, 100 << 10)
GPUS = (H200, RTX_4090)


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says; every value is assumed.

    Attributes:
        floor: seconds that a launch in a graph takes at the least.
        trip: seconds from a load to its value, under load. Idle, an H100 takes some 400 cycles (0.23 us) to
            its memory and half of that to its cache (doi 10.1016/j.ultsonch.2023.106546, table 3).
        processor: bytes/s that one multiprocessor can read, from the cache too. The same table has 8,986 GB/s
            for the cache of an H100's 144: 62 GB/s each.
        share: of bandwidth and flops that a kernel reaches, if it is long enough.
    """

    floor: float
    trip: float
    processor: float
    share: float = 0.8


FAST, SLOW = Assumed(1.5e-6, 0.4e-6, 6.2e10), Assumed(3e-6, 0.8e-6, 5e10)
"""The ends of the ranges."""


@dataclass(frozen=True)
class Launch:
    """Attributes:
    part: of the step, one of `PARTS`.
    nbytes: from and to memory.
    busiest: bytes that the multiprocessor with the most work reads, if that is known.
    trips: loads that wait for one another in the busiest program; one from the cache counts half.
    """

    part: str
    name: str
    nbytes: float
    flops: float = 0.0
    busiest: float = 0.0
    trips: float = 0.0

    def limits(self, gpu: Gpu, assumed: Assumed) -> dict[str, float]:
        """Seconds that it takes at the least, by what bounds it."""
        return {
            "floor": assumed.floor,
            "memory": self.nbytes / (gpu.bandwidth * assumed.share),
            "products": self.flops / (gpu.flops * assumed.share),
            "processor": self.busiest / assumed.processor,
            "waiting": self.trips * assumed.trip,
        }

    def seconds(self, gpu: Gpu, assumed: Assumed) -> float:
        return max(self.limits(gpu, assumed).values())

    def bound(self, gpu: Gpu, assumed: Assumed) -> str:
        """What bounds it most."""
        limits = self.limits(gpu, assumed)
        return max(limits, key=lambda name: limits[name])

    def without_waits(self) -> Launch:
        """As a better kernel would be, for the same bytes and products."""
        return replace(self, busiest=0.0, trips=0.0)


PARTS = ("linears", "attention", "others", "sampling", "down", "up")
"""`down` and `up` are the launches of deltas: before and after the linears of an input group."""


def seconds(launches: Sequence[Launch], gpu: Gpu, assumed: Assumed, *, beside: bool = True) -> float:
    """Of a step.

    Args:
        beside: a `down` runs beside the linears up to its `up`: both share the memory, and the longer one
            counts. To part and to join again is taken to cost nothing.
    """
    total = there = moved = 0.0
    waiting: Launch | None = None
    for launch in launches:
        own = launch.seconds(gpu, assumed)
        if launch.part == "down" and beside:
            waiting, there, moved = launch, 0.0, launch.nbytes
        elif launch.part == "up" and waiting is not None:
            shared = moved / (gpu.bandwidth * assumed.share)
            total += max(there, waiting.seconds(gpu, assumed), shared) + own
            waiting = None
        elif waiting is not None:
            there, moved = there + own, moved + launch.nbytes
        else:
            total += own
    return total
