"""A registry as a directory to be uploaded to the hub: what serves, and a card. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from brainstacks.durable import creating_directory, fsync_directory, make_directory, write_file
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.card import card, row
from brainstacks.stacks.manifest import ROUTER_ENTRY, Manifest, Version
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.store import BLOBS, MANIFEST

CARD = "README.md"

PER_DOMAIN = "other"
"""The hub's word for a licence that it has no name of: here, that each domain has its own."""


def release(
    registry: Registry,
    directory: Path,
    *,
    licences: Mapping[str, str] | None = None,
    licence: str = PER_DOMAIN,
) -> Manifest:
    """Write the serving versions, verified where they are stored, and the card, to a new directory.

    Args:
        licences: domain -> the licence of its data, where its file tells none.
        licence: of the repository, by the hub's name of it.

    Returns:
        The manifest of the release; of a version that serves no more, only the number is remembered.

    Raises:
        ConfigError: nothing serves, a domain has no licence, or the directory is there already.
        CorruptBlob: what serves is damaged.
        StorageFull: no room; nothing is left behind.
    """
    manifest = registry.reload().pruned(keep=0)
    if not manifest.domains:
        raise ConfigError("the registry serves no stack, so there is nothing to release; publish one first")
    if directory.exists():
        raise ConfigError(f"{directory} is there already; name another directory, or remove it")
    paths = {digest: registry.blob_path(digest, anew=True) for digest in sorted(manifest.referenced())}
    text = "\n".join([*_front_matter(registry, manifest, licence), *_body(registry, manifest, licences)])
    make_directory(directory.absolute().parent)
    with creating_directory(directory) as new:
        make_directory(new / BLOBS)
        for digest, path in paths.items():
            with path.open("rb") as source:
                write_file(new / BLOBS / digest, iter(partial(source.read, 1 << 20), b""))
        fsync_directory(new / BLOBS)
        write_file(new / MANIFEST, [manifest.to_bytes()])
        write_file(new / CARD, [text.encode()])
    return manifest


def _front_matter(registry: Registry, manifest: Manifest, licence: str) -> list[str]:
    """YAML that the hub reads; its values are JSON, which is YAML too."""
    files = [read_stack_metadata(registry.blob_path(h.current.digest)) for h in manifest.domains.values()]
    bases = list(dict.fromkeys(file.base.id for file in files if "/" in file.base.id))  # the hub's own ids
    facts: dict[str, object] = {"license": licence}
    if licence == PER_DOMAIN:
        facts |= {"license_name": "per-domain", "license_link": CARD}
    if bases:
        facts |= {"base_model": bases, "base_model_relation": "adapter"}
    facts |= {"library_name": "brainstacks", "tags": ["brainstacks", "lora", *manifest.domains]}
    return ["---", *(f"{name}: {json.dumps(value)}" for name, value in facts.items()), "---", ""]


def _body(registry: Registry, manifest: Manifest, licences: Mapping[str, str] | None) -> list[str]:
    serving: list[tuple[str, Version]] = [(name, h.current) for name, h in manifest.domains.items()]
    if manifest.router is not None:
        serving.append((f"({ROUTER_ENTRY.name})", manifest.router.current))
    files = [row(name, str(v.version), f"{v.bytes:,}", f"`{v.digest}`") for name, v in serving]
    return [
        "# Domain stacks",
        "",
        f"Generation {manifest.generation} of a registry of brainstacks, to be served as it is:",
        "",
        "```console",
        "$ brainstacks-serve --base BASE --registry hf://OWNER/NAME",
        "```",
        "",
        *card(registry, licences),
        "## Files",
        "",
        f"Each is `{BLOBS}/` and its sha256, which is checked before it is used.",
        "",
        row("name", "version", "bytes", "sha256"),
        row(*["---"] * 4),
        *files,
        "",
    ]
