"""How a launcher (torchrun, say) tells a process that it is one of several: by its environment; no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from brainstacks.errors import ConfigError

LAUNCH = "torchrun --standalone --nproc-per-node 2 -m -- training ..."
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """What a launcher's environment tells a process of several.

    Attributes:
        rank: its number among all, 0..count-1.
        local_rank: its number among those of its machine, and that of its GPU.
        count: of all.
    """

    rank: int
    local_rank: int
    count: int


def launched() -> Launch | None:
    """What the environment says of this process; None where it is alone.

    Raises:
        ConfigError: a variable is missing or no number, or they contradict each other.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [name for name in (*NUMBERS, *ADDRESS) if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, and {', '.join(missing)} is not set; start the "
            f"processes with {LAUNCH}, or unset WORLD_SIZE for one"
        )
    values = {name: os.environ[name] for name in NUMBERS}
    if not all(value.isdecimal() for value in values.values()) or not (
        int(values["LOCAL_RANK"]) <= int(values["RANK"]) < int(values["WORLD_SIZE"])
    ):
        told = ", ".join(f"{name} is {value!r}" for name, value in values.items())
        raise ConfigError(
            f"{told}; they are numbers, and LOCAL_RANK <= RANK < WORLD_SIZE: start the processes with "
            f"{LAUNCH}"
        )
    return Launch(*(int(value) for value in values.values()))


def refuse_several(what: str) -> None:
    """Raises ConfigError: several processes of `what`, which takes one, were started; or as `launched`."""
    launch = launched()
    if launch is not None:
        raise ConfigError(
            f"{what} takes one process, and {launch.count} were started; start it without torchrun"
        )
