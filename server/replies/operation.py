"""Replies of `/health`, `/ready` and `/version`."""

from __future__ import annotations

from typing import Literal

from server.replies.reply import Reply


class Device(Reply):
    """`gpu` is what it is, null for a CPU. `state` is `ok`, or what is wrong with it. Stacks may take
    `stack_bytes` there, null for no limit, and keys and values of `kv_cache_tokens` have room."""

    name: str
    gpu: str | None
    state: str
    stack_bytes: int | None
    kv_cache_tokens: int


class Health(Reply):
    """`reason` is why the backend computes, and no other."""

    status: Literal["ok", "failing"]
    backend: str
    reason: str
    device: Device
    running: int
    waiting: int


class Ready(Reply):
    """`problems` says why it is not, or what is degraded although it is; `unrouted`, what routed requests
    leave out, and why."""

    ready: bool
    problems: list[str]
    unrouted: list[str]


class ModelFacts(Reply):
    name: str
    max_context: int
    vocab_size: int
    fingerprint: str
    quantization: str
    dtype: str
    device: str
    created: int
    backend: str
    backend_reason: str
    cpu: str
    gpu: str | None
    device_stack_bytes: int | None
    kv_cache_tokens: int


class ServerVersion(Reply):
    version: str
    generation: int
    model: ModelFacts
    max_body_bytes: int
    max_upload_bytes: int
