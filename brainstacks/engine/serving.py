"""What is served: the registry's active stacks and its router."""

from __future__ import annotations

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.composer import Composer
from brainstacks.errors import BrainstacksError
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.residency import Residency


class Serving:
    """Args:
    registry: None serves the base alone.
    """

    def __init__(self, base: BaseModel, registry: Registry | None, config: EngineConfig) -> None:
        self._base = base
        self._registry = registry
        self.residency = Residency(registry, base, config.device_stack_bytes, config.host_stack_bytes)
        self.composer = Composer(self.residency, None)
        self._router_problem: str | None = None
        self.sync()

    @property
    def generation(self) -> int:
        """The registry's manifest number."""
        return self._registry.generation if self._registry is not None else 0

    @property
    def problems(self) -> tuple[str, ...]:
        """Published versions that cannot be served, and why."""
        return (*self.residency.problems, *([self._router_problem] if self._router_problem else []))

    def sync(self) -> None:
        """Serve what the registry says is active; safe to call from any thread."""
        self.residency.sync()
        if self._registry is None:
            return
        history = self._registry.snapshot().router
        if history is None:
            self.composer.router, self._router_problem = None, None
            if self.residency.serving:
                self._router_problem = "there is no router: routed requests are answered by the base alone"
            return
        active = history.current
        try:
            self.composer.router = Router.load(self._registry.blob_path(active.digest), self._base)
            self._router_problem = None
        except BrainstacksError as error:
            self._router_problem = f"router version {active.version}: {error.message}"
