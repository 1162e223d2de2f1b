"""The name of a combination of stacks: domains joined with "+", in the order of those in use.

That of the base alone is empty.
"""

from __future__ import annotations

from collections.abc import Iterable


def name_of(domains: Iterable[str]) -> str:
    return "+".join(domains)


def domains_of(name: str) -> tuple[str, ...]:
    return tuple(name.split("+")) if name else ()
