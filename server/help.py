"""What `--help` shows: every option of `Settings`, in groups, in words for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from server.settings import Settings

GROUPS = {
    "The model": (
        "base", "quantization", "device", "device_map", "dtype", "backend", "cuda_graphs", "exact",
        "deterministic",
    ),
    "Stacks": (
        "registry", "registry_poll", "registry_cache", "registry_cache_bytes", "device_stack_bytes",
        "host_stack_bytes",
    ),
    "Where it listens, and to whom": (
        "host", "port", "api_key", "api_key_file", "admin_key", "allowed_host", "cors_origin", "metrics",
        "drain_timeout",
    ),
    "More than one of it": ("replicas", "max_replicas", "replica_cpus", "replica_gpus", "affinity"),
    "What it tells": ("log_format", "otlp_endpoint", "check"),
    "Requests": (
        "max_batch_size", "max_queue", "max_context", "max_prefill_tokens", "max_router_batch",
        "kv_cache_tokens", "prefix_caching", "max_unread_events", "routing_records",
    ),
    "What clients send": (
        "key_requests_per_minute", "key_tokens_per_minute", "key_sequences", "max_connections",
        "header_timeout",
        "max_body_bytes", "max_upload_bytes", "max_header_bytes", "body_grace", "upload_dir",
    ),
}  # fmt: skip

KINDS = {"api_key_file": "FILE", "replica_cpus": "NUMBER", "replica_gpus": "NUMBER"}
"""Of options whose type does not tell it."""
WORDS = {str: "TEXT", int: "NUMBER", float: "SECONDS", Path: "DIRECTORY", SecretStr: "KEY"}
WIDTH, INDENT = 100, 30


def help_text() -> str:
    """Of `brainstacks-serve`."""
    intro = textwrap.dedent((Settings.__doc__ or "").split("\n", 1)[1])
    summary = (Settings.__doc__ or "").split("\n", 1)[0]
    lines = ["usage: brainstacks-serve [OPTION ...]", "", summary, intro.rstrip()]
    for title, names in GROUPS.items():
        lines += ["", f"{title}:"]
        for name in names:
            lines += _option(name, Settings.model_fields[name])
    return "\n".join(lines)


def _option(name: str, field: FieldInfo) -> Iterator[str]:
    flag = name.replace("_", "-")
    kind = KINDS.get(name) or _kind(field.annotation)
    spelt = f"  --{flag}, --no-{flag}" if kind is None else f"  --{flag} {kind}"
    default = field.default
    shown = "" if default in (None, ()) else f" ({('no', 'yes')[default] if kind is None else default})"
    text = textwrap.wrap((field.description or "") + shown, WIDTH - INDENT)
    if len(spelt) >= INDENT:
        yield spelt
        spelt = ""
    yield f"{spelt:{INDENT}}{text[0]}"
    for line in text[1:]:
        yield " " * INDENT + line


def _kind(annotation: Any) -> str | None:
    """What stands behind a flag; None for one that is on or off."""
    if annotation is bool:
        return None
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    choices = [one for one in get_args(annotation) if one not in (NoneType, Ellipsis)]
    return _kind(choices[0]) if choices else WORDS[annotation]
