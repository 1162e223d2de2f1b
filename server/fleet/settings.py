"""Options of a fleet: how many replicas there are, and what each is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

SINGLE = ("max_connections", "header_timeout", "max_header_bytes")
"""Options of a listener that a fleet does not have: connections are Ray Serve's."""


class FleetSettings(BaseSettings):
    """A part of `Settings`."""

    replicas: int | None = Field(
        default=None,
        ge=1,
        description="run so many engines behind Ray Serve, here or on the cluster at RAY_ADDRESS; needs the "
        "extra ray; without, one engine in this process",
    )
    max_replicas: int | None = Field(
        default=None, ge=1, description="let Ray Serve add replicas under load, up to this many"
    )
    replica_cpus: float = Field(
        default=1.0,
        gt=0,
        description="processors that Ray sets aside for a replica, whose threads they bound",
    )
    replica_gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs, or the share of one, for a replica; one where the cluster has any, unless "
        "--device is cpu",
    )
    affinity: bool = Field(
        default=True,
        description="requests go to the replica that has their conversation or their stacks, if its load "
        "allows; else by load alone",
    )

    @model_validator(mode="after")
    def _check_fleet(self) -> Self:
        def given(names: Iterable[str]) -> str:
            found = [name for name in names if name in self.model_fields_set]
            return ", ".join(f"--{name.replace('_', '-')}" for name in found)

        if self.replicas is None:
            if useless := given(name for name in FleetSettings.model_fields if name != "replicas"):
                raise ValueError(f"{useless}: only with --replicas, which says how many there are")
        elif useless := given(SINGLE):
            raise ValueError(f"{useless}: not with --replicas, where Ray Serve listens; bound them before it")
        elif self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"--max-replicas is {self.max_replicas}; it is at least --replicas, {self.replicas}"
            )
        return self
