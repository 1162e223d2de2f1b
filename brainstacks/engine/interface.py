"""The face of the engine that `server` is written against; `async_engine.AsyncEngine` is the real one.

No torch here, so that a fake engine can stand behind the whole HTTP layer in tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from brainstacks.engine.facts import DomainStatus, Gauges, ModelInfo, Readiness, RouterStatus
from brainstacks.engine.request import CompositionRequest, Event, GenerationRequest, Routing
from brainstacks.stacks.cache_stats import CacheStats
from brainstacks.stacks.manifest import Manifest, Published, Version


class Tokenizer(Protocol):
    """Text <-> token ids of the base, on any thread. Text of special tokens never becomes a special token."""

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token that text can become."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of plain text; the base's BOS in front when `add_special_tokens` and it has one."""

    @property
    def template_variables(self) -> frozenset[str]:
        """What `template_kwargs` can set in the base's chat template; others do nothing."""

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of `messages` ({"role", "content"}, perhaps more) and `tools` (functions, as OpenAI has
        them) in the base's chat template."""

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """What the base's chat template makes of them, as text. Raises InvalidRequest: it refuses them."""

    def added_token(self, text: str) -> int | None:
        """The token that `text` is as a whole, special or not; None where the base added no such token."""

    def info(self) -> dict[str, Any]:
        """What there is to tell of it: plain JSON values, no paths."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Stacks(Protocol):
    """Administration of what is served."""

    @property
    def generation(self) -> int:
        """The registry's manifest number."""

    def names(self) -> list[str]:
        """Every served domain, in the registry's order."""

    def domains(self) -> list[DomainStatus]:
        """The same with all that is known of them."""

    def domain(self, name: str) -> DomainStatus:
        """Raises DomainNotFound."""

    def router(self) -> RouterStatus | None: ...

    def manifest(self) -> Mapping[str, Any]:
        """The registry's manifest as plain JSON values."""

    async def stored(self) -> Manifest:
        """The registry's manifest as any process stored it last, for `before`. Raises CorruptBlob."""

    async def publish(
        self,
        domain: str,
        file: Path,
        *,
        expected_generation: int | None = None,
        before: Manifest | None = None,
    ) -> Published:
        """Validate `file` completely, try it, store it as `domain`'s newest version, load and activate it.

        The file stays the caller's. Raises InvalidArtifact, IncompatibleArtifact, StaleGeneration,
        StorageFull, StorageUnwritable; Conflict where another writer changed the domain since `before`.
        """

    async def activate(
        self, domain: str, version: int, *, expected_generation: int | None = None
    ) -> Published: ...

    async def delete(
        self, domain: str, *, purge: bool = False, expected_generation: int | None = None
    ) -> Published:
        """Stop serving `domain`; running requests finish with the version they started with."""

    async def publish_router(
        self, file: Path, *, expected_generation: int | None = None, before: Manifest | None = None
    ) -> Published: ...

    async def activate_router(self, version: int, *, expected_generation: int | None = None) -> Published:
        """Raises NotFound, VersionNotFound; IncompatibleArtifact where one of its domains was deleted; and
        what keeps a router from being published."""

    async def file(self, domain: str, version: int) -> tuple[Version, BinaryIO]:
        """A published version and its file, verified and open: it can be read whatever is purged meanwhile.

        The caller closes it. Raises DomainNotFound, VersionNotFound, CorruptBlob.
        """

    async def router_file(self, version: int) -> tuple[Version, BinaryIO]:
        """The same of the router. Raises NotFound, VersionNotFound, CorruptBlob."""

    async def reload(self) -> int:
        """Reconcile with the registry on disk; the generation now served."""

    async def follow(self, seconds: float) -> None:
        """`reload` whenever another process has changed the registry, looking every so many seconds; until it
        is cancelled. What goes wrong is named in `Readiness.problems`."""

    async def pin(self, domain: str) -> DomainStatus:
        """Keep `domain`'s active version on the device, and wait until it is there.

        Raises DomainNotFound, Conflict (no room beside other pins), CorruptBlob.
        """

    async def unpin(self, domain: str) -> DomainStatus:
        """Let it leave when others need its room. Raises DomainNotFound."""

    async def evict(self, domain: str) -> DomainStatus:
        """Make it leave the device until a request needs it. Raises DomainNotFound, Conflict (in use)."""

    async def load(self, domain: str) -> DomainStatus:
        """Bring it to the device, and wait until it is there. Raises DomainNotFound, CorruptBlob."""


class Status(Protocol):
    """What the engine is and does; nothing here waits for a step."""

    @property
    def model(self) -> ModelInfo: ...

    def gauges(self) -> Gauges: ...

    def cache(self) -> CacheStats: ...

    def routing_record(self, request_id: str, tenant: str = "") -> Routing:
        """The record of a recent request of `tenant`. Raises RecordNotFound."""

    def routing_records(self, *, domain: str | None = None, active: bool | None = None) -> list[Routing]:
        """Recent records of all tenants, newest first: of those that know `domain`; of those where it is
        (not) `active`."""

    def silence(self) -> float:
        """Seconds since the engine's thread last came round: between two steps or two commands; 0 while it
        has nothing to do, infinite when it has ended."""

    def problem(self) -> str | None:
        """What is wrong with the device, as long as it does not compute; None while it does."""

    def readiness(self) -> Readiness:
        """Whether requests can be served, and everything that is wrong."""


class Engine(Protocol):
    """Everything `server` asks of the engine. Errors are those of `brainstacks.errors`."""

    @property
    def stacks(self) -> Stacks: ...

    @property
    def status(self) -> Status: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[int, Event]]:
        """Run `requests` side by side, all or none: the index of one, and its event. Each gets one
        `RoutedEvent`, then `TextEvent`s until every completion of it has finished.

        Closing the iterator (or cancelling its task) aborts them, and so does an error of one of them.

        Raises (on the first `anext`): ContextTooLong, DomainNotFound, InvalidRequest, Overloaded,
        Unavailable; (later) EngineFailure, Unavailable.
        """

    async def route(
        self, request_id: str, prompt_ids: Sequence[int], composition: CompositionRequest, tenant: str = ""
    ) -> Routing:
        """How `prompt_ids` would be composed; generates nothing."""

    async def ended(self) -> None:
        """Until the engine computes nothing any more: it was closed, or `Status.problem` says why."""

    async def drain(self, timeout: float) -> None:
        """Refuse new requests, wait at most `timeout` seconds for running ones, abort the rest."""

    async def close(self) -> None: ...
