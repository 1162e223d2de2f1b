"""The object that clients of structured output ask for."""

from __future__ import annotations

from pydantic import BaseModel


class Person(BaseModel):
    """What `RECORD` asks for."""

    name: str
    age: int
