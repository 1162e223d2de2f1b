"""Stacks and routers before they are served: read, checked against the base, and tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brainstacks.base_model import BaseModel
from brainstacks.engine.serving.trial import Trial
from brainstacks.errors import ArtifactTooLarge, DomainNotFound
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack, Shape, StackTensors
from brainstacks.routing.router import Router
from brainstacks.routing.signature import Signature
from brainstacks.stacks.artifact import (
    StackFile,
    StackMetadata,
    check_base,
    check_listed,
    read_stack_metadata,
)
from brainstacks.stacks.lease import ServedStack
from brainstacks.stacks.loader import Loader
from brainstacks.stacks.manifest import StackVersion
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import RouterFile
from brainstacks.stacks.signature_file import check_holds, check_width
from brainstacks.stacks.tensors import load_signature, load_stack, received_stack, received_tensors


@dataclass(frozen=True)
class Candidate:
    """A stack in memory that is being published; checked, and tried where an engine runs."""

    metadata: StackMetadata
    stack: StackTensors | PackedStack


class Candidates:
    """Args:
    base: that they are to fit.
    registry: where they are; None where there is none.
    bank: of the device that they are to be on.
    device_bytes: most bytes of stacks there.

    Attributes:
        trial: tries them; None while no engine runs, and nothing is tried then.
    """

    def __init__(
        self, base: BaseModel, registry: Registry | None, bank: StackBank, device_bytes: int | None
    ) -> None:
        self.trial: Trial | None = None
        self._base = base
        self._registry = registry
        self._bank = bank
        self._device_bytes = device_bytes
        self._loader = Loader()
        self._received: dict[str, Candidate] = {}  # by digest
        self._sound: set[str] = set()  # digests of what passed its trial: the same bytes pass again

    # --- stacks -----------------------------------------------------------------------------------

    def receive(self, file: StackFile) -> None:
        """Check and try a stack that is being published, whose data is in memory, and is not read again until
        `forget`.

        Raises:
            IncompatibleArtifact, ArtifactTooLarge, InvalidArtifact: it cannot be served.
        """
        self._check(file.metadata)
        if file.metadata.signature is not None:
            Signature.of(file.metadata.signature, received_tensors(file))
        stack = self._tried(file.digest, received_stack(file))
        self._received[file.digest] = Candidate(file.metadata, stack)

    def version(self, domain: str, version: StackVersion) -> ServedStack:
        """A version of the registry whose bytes were verified, that fits the base and the device, and that
        passed its trial.

        Raises:
            CorruptBlob: its bytes are damaged, or another domain's.
            IncompatibleArtifact, ArtifactTooLarge, InvalidArtifact: it cannot be served.
        """
        received = self._received.get(version.digest)
        metadata = received.metadata if received else read_stack_metadata(self._path(version.digest))
        check_listed(metadata, domain)
        nbytes = self._check(metadata)
        if self.trial is not None and version.digest not in self._sound:
            self._tried(version.digest, load_stack(self._path(version.digest), metadata))
        return ServedStack(domain, version, metadata, nbytes)

    def check_served(self, stack: ServedStack) -> None:
        """Try a version that came to be served before there was a `trial`. Raises as `version`."""
        if self.trial is not None and stack.key in self._bank.keys:
            self.trial.stack(self._bank.resident(stack.key).stack)
            self._sound.add(stack.digest)
        else:
            self.version(stack.domain, stack.published)

    def read(self, stack: ServedStack) -> StackTensors | PackedStack:
        """Raises CorruptBlob."""
        received = self._received.get(stack.digest)
        return received.stack if received else load_stack(self._path(stack.digest), stack.metadata)

    def signature(self, stack: ServedStack) -> Signature | None:
        """The routing signature in a served stack's file.

        Raises:
            CorruptBlob, InvalidArtifact
            IncompatibleArtifact: it does not hold for the base as it is quantised here.
        """
        config = stack.metadata.signature
        if config is None:
            return None
        check_holds(config, self._base.quantization)
        return Signature.of(config, load_signature(self._path(stack.digest)))

    def forget(self) -> None:
        """Keep nothing in memory any more that was received."""
        self._received = {}

    def _check(self, metadata: StackMetadata) -> int:
        """Bytes that a stack takes on the device.

        Raises:
            IncompatibleArtifact: it was made for another base.
            ArtifactTooLarge: it is larger than the device's budget.
        """
        identity = self._base.identity
        check_base(metadata, identity.fingerprint, identity.dims, identity.layers)
        check_width(metadata.signature, identity.hidden_size)
        nbytes = Shape.of(metadata.config, metadata.dims).nbytes(metadata.rounds, self._base.dtype)
        if self._device_bytes is not None and nbytes > self._device_bytes:
            raise ArtifactTooLarge(
                f"the stack takes {nbytes} bytes on the device and --device-stack-bytes is "
                f"{self._device_bytes}; publish a smaller one, or start the server with more room"
            )
        return nbytes

    def _tried(self, digest: str, stack: StackTensors) -> StackTensors | PackedStack:
        """Try `stack`, beside the device's budget for a moment; as it is loaded from with the least work."""
        if self.trial is None or digest in self._sound:
            return stack
        placed: list[PackedStack] = []

        def place() -> None:
            packed = self._bank.pack(stack)
            placed.extend((packed, self._bank.place(packed)))

        self._loader.submit(place).result()
        packed, there = placed
        self.trial.stack(there)
        self._sound.add(digest)
        return packed

    # --- routers ----------------------------------------------------------------------------------

    def receive_router(self, file: RouterFile) -> None:
        """Check and try a router that is being published, whose data is in memory.

        Raises:
            IncompatibleArtifact, InvalidArtifact: it cannot be served.
        """
        self.check_router(Router.of(file.metadata, received_tensors(file), self._base))

    def router(self, digest: str) -> Router:
        """The registry's router with these bytes, checked and tried. Raises CorruptBlob, and as above."""
        return self.check_router(Router.load(self._path(digest), self._base))

    def check_router(self, router: Router) -> Router:
        """Try `router`. Raises InvalidArtifact."""
        if self.trial is not None:
            self.trial.router(router)
        return router

    def _path(self, digest: str) -> Path:
        if self._registry is None:
            raise DomainNotFound("this model was loaded without a registry")
        return self._registry.blob_path(digest)
