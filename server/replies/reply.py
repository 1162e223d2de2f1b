"""What all replies have in common. They are documentation that tests hold the server to: nothing is
validated while it serves."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """Base of all that is answered, and of the objects in it: these fields and no others. A field that may be
    `MISSING` is there only where it was asked for, or has something to say."""

    model_config = ConfigDict(extra="forbid", strict=True)
