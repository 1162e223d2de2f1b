"""Names that this server answers to. A page of another origin can have its own name lead here (DNS rebinding)
and would then be this server's origin to the browser; the Host header still names the other."""

from __future__ import annotations

import ipaddress

from starlette.types import Scope

from server.errors import RequestRefused
from server.settings import Settings

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


def allowed_hosts(settings: Settings, keyed: bool) -> frozenset[str] | None:
    """Names without ports, in lower case; None for any.

    Without the option: any where a key is needed, which a foreign page does not have, and where the server
    listens to more than this machine, whose names it cannot know; otherwise this machine's own.
    """
    if settings.allowed_host:
        return None if "*" in settings.allowed_host else frozenset(map(_plain, settings.allowed_host))
    return None if keyed or not _loopback(settings.host) else LOCAL | {_plain(settings.host)}


def check_host(scope: Scope, allowed: frozenset[str] | None) -> None:
    """Raises RequestRefused: 403. A request without the header comes from no browser."""
    if allowed is None:
        return
    for name, value in scope["headers"]:
        host = _plain(value.decode("latin-1")) if name == b"host" else None
        if host is not None and host not in allowed:
            raise RequestRefused(
                403,
                f"This server does not answer to the name {host[:80]!r}; start it with --allowed-host NAME",
                code="host_not_allowed",
            )


def _plain(host: str) -> str:
    """Without port, brackets and the last dot."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".") if host.count(":") == 1 else host.removesuffix(".")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
