"""The card of a registry: what its files say about themselves, for people, as Markdown. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import StackMetadata, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata


def card(registry: Registry, licences: Mapping[str, str] | None = None) -> list[str]:
    """Lines on the recipe, seed, data, losses, licences and digests of every active version.

    Args:
        licences: domain -> the licence of its data, where its file tells none.

    Raises:
        ConfigError: a stack does not say what its data's licence is.
    """
    manifest = registry.snapshot()
    stacks = {
        domain: (history.current, read_stack_metadata(registry.blob_path(history.current.digest)))
        for domain, history in manifest.domains.items()
    }
    told = {domain: metadata.licence for domain, (_, metadata) in stacks.items()}
    licence = _licences(told, licences or {})
    lines = []
    bases = {metadata.base.id: metadata.base.fingerprint for _, metadata in stacks.values()}
    for name, fingerprint in bases.items():
        lines += [
            f"Domain stacks for `{name}` (base fingerprint `{fingerprint[:16]}...`), each one safetensors",
            "file; `brainstacks inspect FILE` prints all of its metadata.",
            "",
        ]
    columns = ("domain", "rounds x experts x rank", "bytes", "validation NLL", "seed", "licence of the data")
    lines += [row(*columns), row(*["---"] * len(columns))]
    for domain, (version, metadata) in stacks.items():
        shape = f"{version.rounds} x {version.experts} x r{version.rank}"
        lines += [
            row(domain, shape, f"{version.bytes:,}", _losses(metadata), str(metadata.seed), licence[domain])
        ]
    if any(metadata.predecessors for _, metadata in stacks.values()):
        lines += [
            "",
            "A stack's losses, before and after, are with the stacks that it was trained on top of.",
        ]
    lines += ["", "## How they were trained", ""]
    for domain, (version, metadata) in stacks.items():
        lines += _provenance(domain, version.digest, metadata)
    if manifest.router is not None:
        current = manifest.router.current
        router = read_router_metadata(registry.blob_path(current.digest))
        lines += ["## Meta-router", "", *_description(router.description)]
        lines += [f"- digest `{current.digest}`, {current.bytes:,} bytes, seed {router.seed}"]
        lines += [f"- {key}: {value}" for key, value in router.metrics.items() if key != "history"]
        lines += [f"- {key}: {value}" for key, value in sorted(router.hyperparameters.items())]
        lines += [""]
    return lines


def _licences(told: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Domain -> licence. Raises ConfigError: one has none, or two; or a domain is not there."""
    for domain, licence in given.items():
        if told.get(domain, licence):
            known = f"its file says {told[domain]}" if domain in told else "the registry has no such stack"
            raise ConfigError(f"a licence of {domain} is given, and {known}; leave it out")
    missing = [domain for domain, licence in told.items() if not (licence or given.get(domain))]
    if missing:
        options = " ".join(f"--licence '{domain}=...'" for domain in missing)
        raise ConfigError(
            f"a card tells the licence of the data, and the files of {', '.join(missing)} have none; add "
            f"{options}, or `licence:` in the recipe before the next training"
        )
    return {domain: licence or given[domain] for domain, licence in told.items()}


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def plain(value: Any) -> str:
    """A JSON value, for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _description(text: str) -> list[str]:
    """As a sentence; older imports, and people, end it themselves."""
    return [text.removesuffix(".") + ".", ""] if text else []


def _losses(metadata: StackMetadata) -> str:
    """First to last round, by the keys of training or of an imported stack."""
    if not metadata.losses:
        return "-"
    first, last = metadata.losses[0], metadata.losses[-1]
    before, after = ("before", "after") if "before" in first else ("validation_before", "validation_after")
    return " -> ".join("-" if loss is None else f"{loss:.3f}" for loss in (first[before], last[after]))


def _provenance(domain: str, digest: str, metadata: StackMetadata) -> list[str]:
    data = "; ".join(
        f"{d.name} ({d.examples} records, sha256 `{(d.digest or '')[:16]}...`)" for d in metadata.data
    )
    settings = ", ".join(
        f"{key} ({plain(value)})" if isinstance(value, Mapping) else f"{key} {value}"
        for key, value in sorted(metadata.hyperparameters.items())
    )
    tools = ", ".join(f"{name} {version}" for name, version in sorted(metadata.tool_versions.items()))
    return [
        f"### {domain}",
        "",
        *_description(metadata.description),
        f"- digest `{digest}`",
        *(
            [f"- on top of: {', '.join(p.domain for p in earlier)}"]
            if (earlier := metadata.predecessors)
            else []
        ),
        f"- data: {data}",
        f"- settings: {settings}",
        f"- made with: {tools}",
        "",
    ]
