"""What all request bodies have in common.

Unknown fields are refused by name, "5" is not an integer, true is not 1, NaN is nothing. A null means the
default, whatever the field. 4.0 is an integer. A field that cannot change the answer is accepted and marked
`WITHOUT_EFFECT`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_KEYS = 256
"""Most keys of one object: each unknown one is looked at to be refused by name."""

WITHOUT_EFFECT = "accepted, because ignoring it cannot change the answer"
"""Marks a field; what a request sets of them is named in the reply's `x-brainstacks-ignored`."""

TEXT, LIST, TEXTS, IDS, ID_LISTS = "<text>", "<list>", "<texts>", "<ids>", "<id lists>"
MESSAGE, CALL, RESULT, REASONING = "<message>", "<call>", "<result>", "<reasoning>"
FUNCTION, OTHER = "<function>", "<other>"
NO_PLACES = frozenset(
    {TEXT, LIST, TEXTS, IDS, ID_LISTS, MESSAGE, CALL, RESULT, REASONING, FUNCTION, OTHER, "[key]"}
)
"""What pydantic puts into the place of an error beside names and numbers: tags of the kinds of value that a
field may have (`LIST` also for what is merely no text), and that it is a key."""


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integral_items(value: object) -> object:
    """One look for all: a prompt may have a million ids."""
    if isinstance(value, list) and float in set(map(type, value)):
        return [_integral(item) for item in value]
    return value


Integer = Annotated[int, BeforeValidator(_integral)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True), BeforeValidator(_integral_items)]


def text_or_list(value: object) -> str | None:
    """The kind of a value, by its type alone: what is wrong inside is told by the rule it was meant for."""
    return TEXT if isinstance(value, str) else LIST if isinstance(value, list) else None


class Body(BaseModel):
    """Base of all request bodies, and of the objects in them."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=lambda schema: _as_read(schema)
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > MAX_KEYS:
            raise ValueError(f"it has {len(value)} keys; at most {MAX_KEYS} are read")
        return {key: item for key, item in value.items() if item is not None}

    @model_validator(mode="after")
    def _keeps_rules(self) -> Body:
        broken = list(self.broken_rules())
        if broken:
            raise PydanticCustomError("broken_rules", "rules between fields are broken", {"broken": broken})
        return self

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        """(field, sentence) for every rule between fields that is broken."""
        yield from ()

    def ignored(self) -> list[str]:
        """Names of the fields that are set and have no effect, those of inner objects with a dot."""
        return sorted(set(_ignored(self)))


def _as_read(schema: dict[str, Any]) -> None:
    """Correct what pydantic writes of a body: it leaves out that a null is the default of every field."""
    _named_as_in_json(schema)
    fields = schema.get("properties", {})
    for name in fields.keys() - set(schema.get("required", ())):
        field = fields[name]
        if "anyOf" not in field:
            about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            fields[name] = {"anyOf": [field, {"type": "null"}], **about}


def _named_as_in_json(schema: object) -> None:
    """The bounds of a number that a validator stands before, which pydantic writes by their Python names; and
    that keys of an object with a rule for keys all follow it."""
    if isinstance(schema, list):
        for each in schema:
            _named_as_in_json(each)
    elif isinstance(schema, dict):
        for python, json in (("ge", "minimum"), ("le", "maximum")):
            if isinstance(schema.get(python), int):
                schema[json] = schema.pop(python)
        if "patternProperties" in schema:
            schema["additionalProperties"] = False
        for each in schema.values():
            _named_as_in_json(each)


def _ignored(body: Body, prefix: str = "") -> Iterator[str]:
    for name in body.model_fields_set:
        value = getattr(body, name)
        if WITHOUT_EFFECT in type(body).model_fields[name].metadata:
            yield prefix + name
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Body):
                yield from _ignored(inner, f"{prefix}{name}.")
