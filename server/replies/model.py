"""Replies of `/v1/models`."""

from __future__ import annotations

from typing import Literal

from server.replies.reply import Reply


class Model(Reply):
    """One servable name. `parent` is null for the base itself, `domains` are those it can use."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    domains: list[str]
    generation: int


class Models(Reply):
    object: Literal["list"]
    data: list[Model]
