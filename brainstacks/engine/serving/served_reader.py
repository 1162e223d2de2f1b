"""The reader in force: the registry's router, and the signatures of the stacks that are served."""

from __future__ import annotations

from collections.abc import Mapping

from brainstacks.base_model import BaseModel
from brainstacks.engine.serving.candidates import Candidates
from brainstacks.errors import BrainstacksError
from brainstacks.routing.reader import Reader, Served
from brainstacks.routing.router import Router
from brainstacks.stacks.lease import ServedStack
from brainstacks.stacks.manifest import Manifest, Version


class ServedReader:
    """Args:
    base: whose features are read.
    candidates: where routers and signatures come from.

    Attributes:
        reader: the one in force; replaced as a whole.
        router_version: of its router, which is not the active one if that failed.
    """

    def __init__(self, base: BaseModel, candidates: Candidates) -> None:
        self._base = base
        self._candidates = candidates
        self.reader = Reader(None, {}, base.device)
        self.router_version: Version | None = None
        self._router_problem: str | None = None
        self._failure: tuple[Router | None, str] | None = None  # in a request; until another is in force
        self._served: dict[str, Served] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the router or with a signature."""
        failed = self._failure
        failure = (
            f"a routed request failed: {failed[1]}" if failed and failed[0] is self.reader.router else None
        )
        unusable = (stack.problem for stack in self._served.values())
        return tuple(filter(None, (*unusable, self._router_problem, failure)))

    def failed(self, reader: Reader, problem: str) -> None:
        """Name in `problems` what `reader` did to a request, for as long as its router is in force."""
        self._failure = (reader.router, problem)

    def serve(self, serving: Mapping[str, ServedStack]) -> None:
        """Read by the signatures of these stacks; what is read already is not read again."""
        before, self._served = self._served, {}
        for domain, stack in serving.items():
            known = before.get(domain)
            if known is None or known.digest != stack.digest:
                known = self._found(stack)
            self._served[domain] = known
        self._read_with(self.reader.router)

    def sync_router(self, manifest: Manifest) -> None:
        """Read with the manifest's router. The same bytes stay the same router: conversations remember it."""
        if manifest.router is None:
            self.router_version = self._router_problem = None
            self._read_with(None)
            if self._served and not self.reader.can_read:
                self._router_problem = "there is no router: routed requests are answered by the base alone"
            return
        active = manifest.router.current
        try:
            if self.router_version is None or active.digest != self.router_version.digest:
                self._read_with(self._candidates.router(active.digest))
            self.router_version, self._router_problem = active, None
        except BrainstacksError as error:
            self._router_problem = f"router version {active.version}: {error.message}"

    def try_router(self) -> None:
        """Try what came to be in force before there was an engine to try it."""
        try:
            if self.reader.router is not None:
                self._candidates.check_router(self.reader.router)
        except BrainstacksError as error:
            self.router_version = None
            self._router_problem = error.message
            self._read_with(None)

    def _found(self, stack: ServedStack) -> Served:
        try:
            return Served(stack.digest, self._candidates.signature(stack))
        except BrainstacksError as error:
            problem = f"{stack.domain} version {stack.version}: its signature: {error.message}"
            return Served(stack.digest, problem=problem)

    def _read_with(self, router: Router | None) -> None:
        self.reader = Reader(router, self._served, self._base.device)
