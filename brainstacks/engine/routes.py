"""Routes that are kept: of recent requests, for people; of conversations, for the prompts that follow."""

from __future__ import annotations

import threading
from collections import OrderedDict

from brainstacks.engine.request import Routing
from brainstacks.errors import RecordNotFound
from brainstacks.routing.reader import Reader, Reading


class RoutingRecords:
    """Args:
    capacity: records kept; the oldest gives way.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._records: OrderedDict[tuple[str, str], Routing] = OrderedDict()

    def add(self, routing: Routing) -> None:
        with self._lock:
            key = (routing.tenant, routing.request_id)
            self._records.pop(key, None)
            self._records[key] = routing
            if len(self._records) > self._capacity:
                self._records.popitem(last=False)

    def get(self, request_id: str, tenant: str = "") -> Routing:
        """Of a tenant's own request. Raises RecordNotFound."""
        with self._lock:
            record = self._records.get((tenant, request_id))
        if record is None:
            raise RecordNotFound(
                f"no routing record of request {request_id!r}; the last {self._capacity} are kept"
            )
        return record

    def recent(self, *, domain: str | None = None, active: bool | None = None) -> list[Routing]:
        """Of all tenants, newest first: those that know `domain`, and those where it (or any domain) is or is
        not active."""
        with self._lock:
            records = list(reversed(self._records.values()))
        if domain is not None:
            records = [r for r in records if domain in r.weights]
        if active is not None:
            records = [r for r in records if (domain in r.active if domain else bool(r.active)) == active]
        return records


Conversation = tuple[str, str]
"""Whose it is, and its name."""


class StickyRoutes:
    """Args:
    capacity: conversations remembered; the least recently used gives way.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._routes: OrderedDict[Conversation, tuple[Reader, Reading]] = OrderedDict()

    def recall(self, name: Conversation | None, reader: Reader) -> tuple[Reader, Reading] | None:
        """What was made of `name`'s first prompt, and by whom; None where `reader` is to read this one."""
        if name is None or name not in self._routes:
            return None
        by, _ = self._routes[name]
        if not reader.still_holds(by):
            del self._routes[name]  # another router is in force: its opinion counts
            return None
        self._routes.move_to_end(name)
        return self._routes[name]

    def remember(self, name: Conversation | None, reader: Reader, reading: Reading) -> None:
        """Keep `reading` for `name`; None keeps nothing."""
        if name is None:
            return
        self._routes[name] = (reader, reading)
        self._routes.move_to_end(name)
        if len(self._routes) > self._capacity:
            self._routes.popitem(last=False)
