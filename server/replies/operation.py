"""Replies of `/health`, `/ready` and `/version`."""

from __future__ import annotations

from typing import Literal

from server.replies.reply import Reply


class Health(Reply):
    status: Literal["ok", "failing"]
    backend: str
    running: int
    waiting: int


class Ready(Reply):
    """`problems` says why it is not, or what is degraded although it is."""

    ready: bool
    problems: list[str]


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
    cpu: str


class ServerVersion(Reply):
    version: str
    generation: int
    model: ModelFacts
    max_body_bytes: int
    max_upload_bytes: int
