"""Everything that is wrong with a request's fields, in one sentence or several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from server.schemas.body import NO_PLACES

SHOWN = 16
"""Most offences of one request that are told."""


@dataclass(frozen=True)
class Offence:
    """One field and the rule that it breaks; `message` is a sentence without its full stop."""

    param: str | None
    code: str
    message: str


def offences(found: Iterable[Any]) -> list[Offence]:
    """Pydantic's findings. Unknown fields come first, as they often explain the rest."""
    told = [offence for item in found for offence in _told(item)]
    return sorted(told, key=lambda one: one.code != "unsupported_parameter")


def in_one(found: Sequence[Offence]) -> Offence:
    """All of `found`, one or more: the first one's field and code, and every message."""
    if len(found) == 1:
        return found[0]
    sentences = list(dict.fromkeys(one.message for one in found))
    more = [f"{len(sentences) - SHOWN} more"] if len(sentences) > SHOWN else []
    message = f"{len(sentences)} things are wrong. " + ". ".join([*sentences[:SHOWN], *more])
    return Offence(found[0].param, found[0].code, message)


def _told(item: Any) -> Iterable[Offence]:
    where = [str(part)[:64] for part in item["loc"] if part not in ("body", "query", "path", *NO_PLACES)]
    param = ".".join(where) or None
    subject = param or "The JSON body"
    if item["type"] == "extra_forbidden":
        yield Offence(param, "unsupported_parameter", f"{param!r} is not supported here; leave it out")
    elif item["type"] == "missing":
        yield Offence(param, "missing_required_parameter", f"{subject} is required")
    elif item["type"] == "broken_rules":
        for field, rule in item["ctx"]["broken"]:
            place = ".".join([*where, field])
            yield Offence(
                place, "invalid_value", f"{place} is {shown(_inside(item['input'], field))}: {rule}"
            )
    else:
        reason = item["msg"].removeprefix("Value error, ")
        yield Offence(param, "invalid_value", f"{subject} is {shown(item.get('input'))}: {reason}")


def _inside(value: Any, path: str) -> object:
    """What stands at `path`, names and numbers with dots between, if anything does."""
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def shown(value: object) -> str:
    """`value` as a client wrote it, cut short."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, str):
        return repr(value[:40]) + ("..." if len(value) > 40 else "")
    if isinstance(value, int) and value.bit_length() > 64:
        return "an integer beyond 64 bits"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
