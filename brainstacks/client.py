"""A running server, over HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2 as httpx

from brainstacks.durable import creating, storage_full, write_file
from brainstacks.errors import BrainstacksError, ConfigError, CorruptBlob
from brainstacks.stacks.manifest import Manifest, Published, Version

CONNECT_SECONDS, REPLY_SECONDS = 10.0, 600.0
"""For an answer, longer than a large stack takes to be tried and loaded."""
BLOCK = 1 << 20

Progress = Callable[[int], None]
"""Called with bytes that have just been moved."""


class ServerError(BrainstacksError):
    """The server refused, or did not answer as it should. `code` is its own where it gave one."""

    default_code = "server_error"


class Client:
    """A running server. Every method raises ServerError.

    Args:
        url: where the server is.
        key: of the area that is asked; empty: none.

    Attributes:
        key_from: where the key can be given, for who gave a wrong one or none.

    Raises:
        ConfigError: the URL is none that a server can have.
    """

    key_from = "BRAINSTACKS_API_KEY"

    def __init__(self, url: str, key: str) -> None:
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"the server's URL is {url!r}: {error}; give http://HOST:PORT") from error
        if base.scheme not in ("http", "https") or not base.host:
            raise ConfigError(f"the server's URL is {url!r}; give http://HOST:PORT, or https")
        self.url = url
        self._http = httpx.Client(
            base_url=base,
            headers={b"Authorization": f"Bearer {key}".encode()} if key else {},
            timeout=httpx.Timeout(REPLY_SECONDS, connect=CONNECT_SECONDS),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def attribution(self, prompt: str, completion: str, model: str | None) -> dict[str, Any]:
        """What `POST /v1/attribution` tells of an answer to a message. `model` chooses the composition."""
        asked = {"model": model, "messages": [{"role": "user", "content": prompt}], "completion": completion}
        return self._document(self._ask("POST", "/v1/attribution", json=asked))

    def route(self, **prompt: Any) -> dict[str, Any]:
        """What `POST /v1/route` tells of `prompt` or `messages`: weights, who gave them, the gap."""
        found = self._document(self._ask("POST", "/v1/route", json=prompt))
        if missing := [name for name in ("weights", "active", "routed_by", "gap") if name not in found]:
            raise self._foreign(f"a route without {missing[0]!r}")
        return found

    # --- inside -----------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, *, also: int | None = None, **how: Any) -> httpx.Response:
        """A reply that is a success, or has the status `also`."""
        with self._answering():
            reply = self._http.request(method, path, **how)
        if reply.status_code != also:
            self._check(reply)
        return reply

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Says of a server that does not answer what to look at."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServerError(
                f"nothing answers at {self.url} ({error}); is the server running, and is that its address?"
            ) from error
        except httpx.TransportError as error:
            raise ServerError(
                f"the exchange with {self.url} broke off ({str(error) or type(error).__name__}); look at the "
                "server's log and `brainstacks status`, then give the command again"
            ) from error

    def _check(self, reply: httpx.Response) -> None:
        """Raises ServerError, with the server's own words, for what is no success."""
        if reply.is_success:
            return
        try:
            error = reply.json()["error"]
            message, code = str(error["message"]), str(error["code"])
        except (ValueError, KeyError, TypeError):
            raise self._foreign(f"status {reply.status_code}") from None
        if reply.status_code == 401:
            message += f" (here: {self.key_from})"
        raise ServerError(message, code=code)

    def _document(self, reply: httpx.Response) -> dict[str, Any]:
        try:
            document = reply.json()
        except ValueError:
            raise self._foreign("what is no JSON") from None
        if not isinstance(document, dict):
            raise self._foreign("what is no JSON object")
        return document

    def _json(self, method: str, path: str, name: str) -> Any:
        document = self._document(self._ask(method, path))
        if name not in document:
            raise self._foreign(f"no {name!r}")
        return document[name]

    def _foreign(self, what: str) -> ServerError:
        return ServerError(f"{self.url} answered with {what}; is it a Brainstacks server?")


class AdminClient(Client):
    """A server as its operator sees it. A stack goes by its domain's name, the router by None."""

    key_from = "BRAINSTACKS_ADMIN_KEY or --admin-key-file"

    # --- what there is ----------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """What the server's registry has published."""
        reply = self._ask("GET", "/admin/registry")
        try:
            return Manifest.from_bytes(reply.content)
        except CorruptBlob as error:
            raise ServerError(
                f"{self.url} sends a manifest that cannot be read ({error.message}); is it a Brainstacks "
                "server of this version?"
            ) from error

    def stacks(self) -> list[dict[str, Any]]:
        """Every served domain."""
        return list(self._json("GET", "/admin/stacks", "stacks"))

    def router(self) -> dict[str, Any] | None:
        """The router in force, where there is one."""
        reply = self._ask("GET", "/admin/router", also=404)
        return None if reply.status_code == 404 else dict(self._document(reply))

    def readiness(self) -> tuple[bool, list[str], list[str]]:
        """Whether requests can be served, what is wrong, and what routed requests leave out."""
        found = self._document(self._ask("GET", "/ready", also=503))
        problems, unrouted = (
            [str(line) for line in found.get(name, ())] for name in ("problems", "unrouted")
        )
        return found.get("ready") is True, problems, unrouted

    def version(self) -> dict[str, Any]:
        """Of the server, its base, and what it takes."""
        return self._document(self._ask("GET", "/version"))

    # --- changes ----------------------------------------------------------------------------------

    def push(self, file: Path, domain: str | None, expect: int | None, progress: Progress) -> Published:
        """Publish `file`. It is read while it is sent."""
        headers = {"Content-Length": str(file.stat().st_size), **_if_match(expect)}
        return self._published(
            self._ask("PUT", _path(domain), content=_sent(file, progress), headers=headers)
        )

    def activate(self, domain: str | None, version: int, expect: int | None) -> Published:
        """Make a published version serve."""
        path = f"{_path(domain)}/activate"
        return self._published(self._ask("POST", path, json={"version": version}, headers=_if_match(expect)))

    def pin(self, domain: str) -> dict[str, Any]:
        """Keep a stack on the device; returns once it is there, with its status."""
        return self._document(self._ask("POST", f"{_path(domain)}/pin"))

    def unpin(self, domain: str) -> dict[str, Any]:
        """Let a stack leave the device; its status."""
        return self._document(self._ask("POST", f"{_path(domain)}/unpin"))

    def pull(self, domain: str | None, version: Version, to: Path, progress: Progress) -> None:
        """Write the file of `version` to `to`, whole or not at all, once its digest was found right.

        Raises:
            FileExistsError: `to` is there already.
            StorageFull: no room.
        """
        path = f"{_path(domain)}/versions/{version.version}/file"
        with self._answering(), self._http.stream("GET", path) as reply:
            if reply.is_error:
                reply.read()
            self._check(reply)
            digest = hashlib.sha256()

            def received() -> Iterator[bytes]:
                for block in reply.iter_bytes(BLOCK):
                    digest.update(block)
                    progress(len(block))
                    yield block

            with storage_full(to.name), creating(to) as temporary:
                write_file(temporary, received())
                if digest.hexdigest() != version.digest:
                    raise ServerError(
                        f"what arrived has the sha256 {digest.hexdigest()}, and the manifest says "
                        f"{version.digest}; nothing was kept: pull it again, and look at the proxies between"
                    )

    def _published(self, reply: httpx.Response) -> Published:
        found = self._document(reply)
        try:
            name = found["domain"] if "domain" in found else found["name"]
            return Published(name, found["version"], found["digest"], found["generation"], found["created"])
        except KeyError as error:
            raise self._foreign(f"no {error}") from None


def _path(domain: str | None) -> str:
    return "/admin/router" if domain is None else f"/admin/stacks/{domain}"


def _if_match(generation: int | None) -> Mapping[str, str]:
    return {} if generation is None else {"If-Match": f'"{generation}"'}


def _sent(file: Path, progress: Progress) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            yield block
            progress(len(block))
