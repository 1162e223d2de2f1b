"""The application that Ray Serve runs: replicas, each the whole server over an engine, and one roster.

`application` is what a Serve configuration file names as `import_path`; its `args` are the server's options.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from brainstacks.errors import ConfigError
from server import log
from server.api.health import ailing
from server.app import create_app
from server.fleet.member import Member
from server.fleet.request_router import StackRouter
from server.fleet.roster import Roster
from server.fleet.states import ReplicaState
from server.opening import engine_config, open_engine, settle
from server.settings import Settings
from server.tracing import open_tracing
from server.uploads import check_upload_dir, remove_leftovers

NAME = "brainstacks"
ASIDE = 16
"""Requests that generate nothing, such as /metrics, which a replica takes although its line is full."""
GRACE = 15.0
"""Seconds beyond the drain that a replica has to end."""


class RosterHandle:
    """`member.RosterCalls` over Ray."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def exchange(
        self, state: ReplicaState, metrics: bytes | None = None, seen: int | None = None
    ) -> list[ReplicaState]:
        told: list[ReplicaState] = await self._handle.exchange.remote(state, metrics, seen)
        return told

    async def leave(self, name: str) -> None:
        await self._handle.leave.remote(name)

    async def metrics(self) -> dict[str, bytes]:
        told: dict[str, bytes] = await self._handle.metrics.remote()
        return told


class Replica:
    """One engine, and the application over it. Serve routes to it once it is made."""

    def __init__(self, settings: Settings, roster: DeploymentHandle[Any]) -> None:
        self._following: list[asyncio.Task[None]] = []
        log.configure(settings.log_format)
        check_upload_dir(settings)
        self.engine = open_engine(settings, engine_config(settings))
        settle()
        remove_leftovers(settings)
        name = serve.get_replica_context().replica_id.unique_id
        self.member = Member(name, self.engine, RosterHandle(roster), self._metrics)
        tracing = open_tracing(settings.otlp_endpoint)
        self._built = create_app(self.engine, settings, tracing, fleet=self.member)
        self._following.append(asyncio.create_task(self.member.follow()))
        if settings.registry_poll:
            self._following.append(asyncio.create_task(self.engine.stacks.follow(settings.registry_poll)))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._built

    def check_health(self) -> None:
        """Serve starts another one where this raises."""
        if (problem := ailing(self.engine.status)) is not None:
            raise RuntimeError(problem)

    def record_routing_stats(self) -> dict[str, frozenset[str]]:
        """For `StackRouter`: domains by where their stacks are."""
        tiers = self.engine.status.cache().tiers
        return {
            where: frozenset(domain for domain, tier in tiers.items() if tier == where)
            for where in ("device", "host")
        }

    async def __del__(self) -> None:
        """Serve has waited for running requests before; what still runs is aborted."""
        for task in self._following:
            task.cancel()
        if hasattr(self, "member"):  # else it never came to be
            await self.member.leave()
        if hasattr(self, "engine"):
            await self.engine.close()

    def _metrics(self) -> bytes:
        page: bytes = self._built.state.context.metrics.render()
        return page


def deployed(settings: Settings) -> Application:
    """The application of `settings`, whose `replicas` must be given."""
    replicas = settings.replicas
    if replicas is None:
        raise ConfigError("replicas is not set; it is the number of engines to run")
    scaling: dict[str, Any] = {"num_replicas": replicas}
    if settings.max_replicas is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas,
                max_replicas=settings.max_replicas,
                # Beyond half of it a batch is hardly faster, and lines grow.
                target_ongoing_requests=math.ceil(settings.max_batch_size / 2),
            )
        }
    replica = serve.deployment(
        **scaling,
        name="replica",
        ray_actor_options={"num_cpus": settings.replica_cpus, "num_gpus": gpus_of(settings)},
        # The engine's own line refuses first, in words (429); Serve's stands behind it (503).
        max_ongoing_requests=settings.max_batch_size + settings.max_queue + ASIDE,
        max_queued_requests=settings.max_queue,
        graceful_shutdown_timeout_s=settings.drain_timeout + GRACE,
        health_check_period_s=5,
        request_router_config=RequestRouterConfig.model_validate(
            {
                "request_router_class": StackRouter,
                "request_router_kwargs": {"affinity": settings.affinity},
                "request_routing_stats_period_s": 0.5,
            }
        ),
        logging_config={"enable_access_log": False},  # `RequestContext` writes it
    )(serve.ingress()(Replica))
    roster = serve.deployment(
        name="roster", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10_000,
        logging_config={"enable_access_log": False},
    )(Roster)  # fmt: skip
    return replica.bind(settings, roster.bind())


def gpus_of(settings: Settings) -> float:
    """Of one replica."""
    if settings.replica_gpus is not None:
        return settings.replica_gpus
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return 0 if settings.device == "cpu" else min(1, there.get("GPU", 0))


def application(args: dict[str, Any]) -> Application:
    """For `import_path`: options by name, as `registry` or `max_queue`, on top of the variables;
    `replicas` is 1 unless they say.

    Raises:
        ConfigError: an option is wrong, or there is none of that name.
    """
    try:
        return deployed(Settings(**{"replicas": 1, **args}))
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)
        ]
        raise ConfigError("; ".join(wrong)) from None
