"""Routes that conversations keep: the first prompt's probabilities stand for those that follow."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from brainstacks.routing.router import Router

Probabilities = Mapping[str, float]


class StickyRoutes:
    """Args:
    capacity: conversations remembered; the least recently used gives way.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._routes: OrderedDict[str, tuple[Router, Probabilities]] = OrderedDict()

    def recall(self, name: str | None, router: Router) -> Probabilities | None:
        """What `router` made of the first prompt of `name`; None where it has to read this one."""
        if name is None or name not in self._routes:
            return None
        by, probabilities = self._routes[name]
        if by is not router:
            del self._routes[name]  # another router is in force: its opinion counts
            return None
        self._routes.move_to_end(name)
        return probabilities

    def remember(self, name: str | None, router: Router, probabilities: Probabilities) -> None:
        """Keep `probabilities` for `name`; None keeps nothing."""
        if name is None:
            return
        self._routes[name] = (router, probabilities)
        self._routes.move_to_end(name)
        if len(self._routes) > self._capacity:
            self._routes.popitem(last=False)
