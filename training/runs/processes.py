"""The processes that one command computes in, as a launcher started them (torchrun, say).

Each runs the whole command on a base of its own; what takes long is shared out. The first alone reads and
writes the run's directory and publishes; whatever something is decided by, all of them have the same of.
With one process nothing here communicates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from brainstacks.errors import BrainstacksError, ConfigError
from training.progress import silent, tracked
from training.runs.launch import ADDRESS, LAUNCH, Launch

PATIENCE = timedelta(minutes=30)
"""For which a process waits for the others, at the start and wherever they come together."""

CPU = torch.device("cpu")
S = TypeVar("S")
T = TypeVar("T")


class AnotherFailed(BrainstacksError):
    """This process stops because another one of the command did."""

    default_code = "another_failed"


@dataclass(frozen=True)
class Processes:
    """One of them, and its way to the others. A method is called by all of them, in the same order.

    Attributes:
        device: of this one.
        rank: its number, 0..count-1.
    """

    device: torch.device = CPU
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[S]) -> Sequence[S]:
        """What of `items` is for this process: every `count`-th."""
        return items[self.rank :: self.count]

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, in all of them.

        Raises:
            AnotherFailed: `make` raised there, where its error goes on.
        """
        if self.count == 1:
            return make()
        found: list[Any] = [None]
        try:
            if self.is_first:
                found = [(make(),)]
        finally:  # the others wait, whatever became of it
            with _together():
                dist.broadcast_object_list(found, src=0)
        if found[0] is None:
            raise AnotherFailed("process 0 failed, and says why")
        result: T = found[0][0]
        return result

    def on_first(self, act: Callable[[], object]) -> None:
        """Let the first process `act`; the others wait for it. Raises as `first`."""

        def acted() -> None:
            act()

        self.first(acted)

    def reporting(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """`report` in the first process; in the others, what tells nobody."""
        return report if self.is_first else lambda line: None

    def gathered(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives in each process, by rank, in all of them.

        Raises:
            AnotherFailed: `make` raised in another.
        """
        if self.count == 1:
            return [make()]
        mine: tuple[T] | None = None
        found: list[Any] = [None] * self.count
        try:
            mine = (make(),)
        finally:
            with _together():
                dist.all_gather_object(found, mine)
        failed = [rank for rank, made in enumerate(found) if made is None]
        if failed:
            raise AnotherFailed(f"process {failed[0]} failed, and says why")
        return [made[0] for made in found]

    def shared(self, items: Sequence[S], work: Callable[[S], T], name: str, unit: str) -> list[T]:
        """`work` of each of `items`, in their order, in all processes; each does its share of them.

        What comes of an item does not depend on how many processes there are.

        Args:
            name, unit: of the progress, as in `tracked`.

        Raises:
            AnotherFailed: as `gathered`.
        """

        def done() -> list[T]:
            with tracked(self.share(items), name, unit) as each:
                return [work(item) for item in each]

        found = self.gathered(done)
        return [found[i % self.count][i // self.count] for i in range(len(items))]

    def summed(self, *values: Tensor | float) -> list[float]:
        """Of each value (a scalar, float64 on `device` where it is a tensor) the sum over all processes, read
        at once."""
        found = torch.stack([*map(self._scalar, values)])
        if self.count > 1:
            with _together():
                dist.all_reduce(found)
        return found.tolist()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each parameter's gradient the sum of those that the processes have; one without any counts as
        zeros. It takes as much memory again meanwhile."""
        if self.count == 1:
            return
        every = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _together():
            dist.all_reduce(flat)
        sums = flat.split([gradient.numel() for gradient in gradients])
        for parameter, gradient, total in zip(every, gradients, sums, strict=True):
            parameter.grad = gradient.copy_(total.view_as(gradient))

    def check_same(self, what: str, value: object) -> None:
        """Raises ConfigError: `value`, for people `what`, is not the same in all processes."""
        found = self.gathered(lambda: value)
        other = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
        if other is not None:
            raise ConfigError(
                f"process {other} has other {what} than process 0; all of them need the same command, files "
                "and registry"
            )

    def _scalar(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value
        # Filled there: a copy from the host would be waited for.
        return torch.full((), float(value), dtype=torch.float64, device=self.device)


ALONE = Processes()
"""A single one, on the CPU."""


@contextmanager
def meeting(device: torch.device, launch: Launch | None) -> Iterator[Processes]:
    """The processes of this command, while the `with` lasts; those beside the first show no progress.

    Args:
        device: of this process.

    Raises:
        ConfigError: the others did not come.
    """
    if launch is None:
        yield Processes(device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, rank=launch.rank, world_size=launch.count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        address, port = (os.environ[name] for name in ADDRESS)
        raise ConfigError(
            f"the {launch.count} processes that WORLD_SIZE asks for did not meet at {address}:{port}: "
            f"{_first_line(error)}; start all of them, with {LAUNCH}, or unset WORLD_SIZE for one"
        ) from error
    with ExitStack() as resources:
        if launch.rank:
            resources.enter_context(silent())
        yield Processes(device, launch.rank, launch.count)
    dist.destroy_process_group()  # not after an error: it could wait for processes that are gone


@contextmanager
def _together() -> Iterator[None]:
    """Around what waits for the others: one that ended without a word breaks the connection."""
    try:
        yield
    except RuntimeError as error:
        raise AnotherFailed(f"another process of this command is gone: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
