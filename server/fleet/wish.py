"""What a request would like of the replica that computes it, as far as the listener can tell."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

ASKING = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/route", "/v1/attribution"}
)
"""Routes whose requests have a prompt and a composition."""

MOST_NAMED = 64
"""Stacks of one request that are looked for."""
BEGINNING = 1024
"""Characters of a prompt that tell which conversation it is."""

_NAME = re.compile(r"(?!base$|ungated$)[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Wish:
    """Goes from the listener to the request router, in the header that Ray Serve keeps for sessions.

    Attributes:
        replica: the one that the client named, None for any.
        last: the one that computed the conversation so far.
        stacks: domains that its composition has.
    """

    replica: str | None = None
    last: str | None = None
    stacks: tuple[str, ...] = ()

    def header(self) -> bytes:
        return json.dumps([self.replica, self.last, self.stacks], separators=(",", ":")).encode()

    @classmethod
    def parse(cls, header: str) -> Wish:
        """The inverse; no wish where it is something else: a client's own, which no entrance has replaced."""
        try:
            replica, last, stacks = json.loads(header)
            return cls(replica, last, tuple(map(str, stacks)))
        except (ValueError, TypeError, RecursionError):
            return cls()


@dataclass(frozen=True)
class Asked:
    """What a body says of where its request belongs.

    Attributes:
        conversation: a digest of its composition and of how its prompt begins, which all turns share.
        stacks: domains that it names.
    """

    conversation: bytes
    stacks: tuple[str, ...]


def asked(body: bytes, session: bytes | None = None) -> Asked | None:
    """None where `body` is no such thing; what is wrong with it the replica will say.

    Args:
        session: what the client calls its conversation (`x-session-id`), if it does. So does the body's
            `prompt_cache_key`, which goes before how the prompt begins.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    model, routing = said.get("model"), said.get("routing")
    name = session.decode("latin-1") if session is not None else said.get("prompt_cache_key")
    beginning = name if isinstance(name, str) else list(_beginning(said))
    told = json.dumps([model, routing, beginning], sort_keys=True)
    digest = hashlib.blake2b(told.encode(), digest_size=16).digest()
    return Asked(digest, tuple(sorted(set(islice(_named(model, routing), MOST_NAMED)))))


def _named(model: object, routing: object) -> Iterator[str]:
    """Domains of `<base>:<domain>`, and of fixed weights."""
    if isinstance(model, str):
        yield from filter(_named_so, model.split(":")[1:])
    if isinstance(routing, dict) and isinstance(weights := routing.get("weights"), dict):
        yield from (domain for domain, weight in weights.items() if weight and _named_so(domain))


def _named_so(domain: str) -> bool:
    """Whether there may be such a domain: what a client writes goes no further otherwise."""
    return _NAME.fullmatch(domain) is not None


def _beginning(said: Mapping[str, Any]) -> Iterator[object]:
    """What all turns of a conversation have in front: all up to the user's first message."""
    yield said.get("instructions")
    for prompt in (said.get("prompt"), said.get("messages"), said.get("input")):
        if isinstance(prompt, str):
            yield prompt[:BEGINNING]
        elif isinstance(prompt, list):
            yield from _up_to_the_user(prompt)


def _up_to_the_user(prompt: Sequence[object]) -> Iterator[object]:
    if prompt and not isinstance(prompt[0], dict):  # texts, or token ids
        yield prompt[0] if isinstance(prompt[0], str) else prompt[:BEGINNING]
        return
    for message in prompt:
        yield message
        if isinstance(message, dict) and message.get("role") == "user":
            return
