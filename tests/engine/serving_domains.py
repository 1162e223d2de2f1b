"""What tests do to the domains that are served, and ask of them."""

from __future__ import annotations

from collections.abc import Callable

from brainstacks.engine.serving.serving import Serving
from brainstacks.stacks.registry import Registry

Publish = Callable[..., None]


def resident(serving: Serving) -> set[object]:
    serving.cache.wait_for_loads()
    return set(serving.cache.bank.keys)


def damage(registry: Registry, domain: str) -> None:
    """Change one byte of the active version's file."""
    path = registry.blob_path(registry.snapshot().domain(domain).current.digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(content))
