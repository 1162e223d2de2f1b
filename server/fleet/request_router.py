"""`Placement`, as Ray Serve's request router."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from server.fleet.placement import Candidate, Placement
from server.fleet.wish import Wish

NOTHING: frozenset[str] = frozenset()


class StackRouter(RequestRouter):
    """Lives in the process that listens; replicas report what stacks they have twice a second."""

    def initialize_state(self, affinity: bool = True, **others: Any) -> None:
        """`affinity` False goes by load alone."""
        self._affinity = affinity
        self._placement = Placement()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups, which Ray Serve tries one after the other, and of each the least loaded first."""
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if pending_request is None:
            return [candidate_replicas]
        wish = Wish.parse(pending_request.metadata.session_id)
        if not self._affinity:
            wish = Wish(wish.replica)
        order = self._placement.order(wish, [self._seen(name, one) for name, one in replicas.items()])
        pending_request.routing_context.should_backoff = True
        # In any order: of those that have nothing to do Ray Serve would take the first.
        return [[replicas[one.name] for one in random.sample(group, len(group))] for group in order]

    def _seen(self, name: str, replica: RunningReplica) -> Candidate:
        told: dict[str, frozenset[str]] = replica.routing_stats or {}
        load = self.replica_queue_len_cache.get(replica.replica_id) or 0
        return Candidate(name, load, told.get("device", NOTHING), told.get("host", NOTHING))
