"""One replica: a continuous batch, room for some stacks, one loader. It keeps the engine's rules.

Steps that are alike are one event: while nobody joins or leaves the batch, each takes as long as the last.
"""

from __future__ import annotations

import heapq
import itertools
import math
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.scaling.profile import Profile
from benchmarks.scaling.requests import Request
from brainstacks.stacks.stack_cache import MAX_OVERTAKEN

Gaps = list[tuple[float, float, int]]
"""(when, seconds, tokens): that many tokens followed the one before them after so long."""


@dataclass(frozen=True)
class Room:
    """For stacks: on a replica's device, and in host memory beside it."""

    device: int
    host: int


class Stacks:
    """Which stacks have room on the device, decided as in `brainstacks.stacks.places`; the loader's queue.

    Attributes:
        there: stack -> when it has arrived or will, the least recently used first.
        host: of those that had to leave, the ones still in host memory.
        holds: requests that need a stack there.
        free: when the loader has nothing left to do.
        loads: by where the stack was.
    """

    def __init__(self, profile: Profile, room: Room) -> None:
        self._profile, self._room = profile, room
        self.there: OrderedDict[str, float] = OrderedDict()
        self.host: OrderedDict[str, None] = OrderedDict()
        self.holds: Counter[str] = Counter()
        self.free = 0.0
        self.loads: Counter[str] = Counter()

    def grant(self, stacks: tuple[str, ...], now: float) -> float | None:
        """Take the room for all of them; when they are there, or None where too much is held."""
        entering = [stack for stack in stacks if stack not in self.there]
        need = len(self.there) + len(entering) - self._room.device
        victims: list[str] = []
        if need > 0:
            idle = (one for one in self.there if not self.holds[one] and one not in stacks)
            victims = list(itertools.islice(idle, need))
            if len(victims) < need:
                return None
        for victim in victims:
            del self.there[victim]
            self.host[victim] = None
        for stack in entering:
            source = "host" if stack in self.host else self._profile.source
            self.host.pop(stack, None)
            self.free = max(self.free, now) + self._profile.loads[source]
            self.loads[source] += 1
            self.there[stack] = self.free
        while len(self.host) > self._room.host:
            self.host.popitem(last=False)
        ready = now
        for stack in stacks:
            self.there.move_to_end(stack)
            self.holds[stack] += 1
            ready = max(ready, self.there[stack])
        return ready

    def begin_with(self, stacks: Iterable[str]) -> None:
        """These were needed before everything began, one after another: the last ones are still there."""
        for stack in stacks:
            if len(self.there) == self._room.device:
                victim, _ = self.there.popitem(last=False)
                self.host[victim] = None
            self.there[stack] = 0.0
        while len(self.host) > self._room.host:
            self.host.popitem(last=False)

    def release(self, stacks: tuple[str, ...]) -> None:
        for stack in stacks:
            self.holds[stack] -= 1


class Replica:
    """Attributes:
    load: requests that it has and that have not ended.
    next: when something happens here; infinite while nothing will by itself.
    busy: seconds in which it computed.
    gaps: between tokens.
    most_alike: steps that are one event.
    """

    most_alike = sys.maxsize

    def __init__(self, profile: Profile, room: Room) -> None:
        self.profile = profile
        self.stacks = Stacks(profile, room)
        self.load = 0
        self.next = math.inf
        self.busy = 0.0
        self.gaps: Gaps = []
        self._kept: OrderedDict[int, int] = OrderedDict()  # conversation -> tokens whose keys and values stay
        self._kept_tokens = 0
        self._numbers = itertools.count()
        self._waiting: deque[Request] = deque()  # for room; they hold nothing
        self._overtaken = 0
        self._loading: list[tuple[float, int, Request]] = []
        self._ready: deque[Request] = deque()
        self._reading: deque[tuple[Request, int]] = deque()  # prompts, and what is left of them
        self._running: list[tuple[int, int, Request]] = []  # by the step that ends them
        self._applied: Counter[str] = Counter()  # stack -> running rows
        self._pairs = 0
        self._steps = 0
        self._begun, self._each, self._count = 0.0, 0.0, 0  # the steps that are being computed
        self._ends = math.inf
        self._reads: list[Request] = []  # whose prompts end with this step

    def add(self, request: Request, now: float) -> None:
        self.load += 1
        there = self.stacks.there
        arrived = [there.get(stack, math.inf) <= now for stack in request.stacks]
        request.hits = sum(arrived)
        roomy = all(stack in there for stack in request.stacks)
        if not request.stacks or (roomy and (not self._waiting or self._overtaken < MAX_OVERTAKEN)):
            self._overtaken += bool(self._waiting and request.stacks)
            self._lease(request, now)
        else:
            self._waiting.append(request)
            self._grant_waiting(now)
        self.proceed(now)

    def proceed(self, now: float) -> None:
        """What happens at `now`: stacks arrive, steps end, others begin."""
        while self._loading and self._loading[0][0] <= now:
            self._ready.append(heapq.heappop(self._loading)[2])
        if self._ends <= now:
            self._end_steps(now)
        if self._ends == math.inf:
            self._begin(now)
        elif self._ready and self._count > 1 and self._rows < self.profile.max_batch:
            self._count = max(1, math.ceil((now - self._begun) / self._each - 1e-9))
            self._ends = self._begun + self._count * self._each
        self.next = min(self._ends, self._loading[0][0] if self._loading else math.inf)

    @property
    def _rows(self) -> int:
        return len(self._running) + len(self._reading)

    def _lease(self, request: Request, now: float) -> bool:
        ready = self.stacks.grant(request.stacks, now)
        if ready is None:
            return False
        heapq.heappush(self._loading, (ready, next(self._numbers), request))
        return True

    def _grant_waiting(self, now: float) -> None:
        while self._waiting and self._lease(self._waiting[0], now):
            self._waiting.popleft()
            self._overtaken = 0

    def _begin(self, now: float) -> None:
        """The next step, and as many like it as follow."""
        left = self.profile.max_prefill
        while self._ready and self._rows < self.profile.max_batch:
            request = self._ready.popleft()
            request.reused = min(request.history, self._kept.get(request.conversation, 0))
            self._reading.append((request, max(1, request.prompt - request.reused)))
        seconds = 0.0
        for _ in range(len(self._reading)):
            request, tokens = self._reading[0]
            read = min(tokens, left)
            seconds += self.profile.prefill(read, len(request.stacks))
            left -= read
            if read < tokens:
                self._reading[0] = (request, tokens - read)
                break
            self._reads.append(request)
            self._reading.popleft()
        if self._running:
            seconds += self.profile.decode(len(self._running), len(self._applied), self._pairs)
        if not (self._running or self._reading or self._reads):
            return
        alone = bool(self._reading or self._reads)
        self._count = 1 if alone else min(self.most_alike, self._running[0][0] - self._steps)
        self._each = seconds * (self.profile.while_loading if self.stacks.free > now else 1.0)
        self._begun, self._ends = now, now + self._count * self._each

    def _end_steps(self, now: float) -> None:
        self._ends = math.inf
        self._steps += self._count
        self.busy += self._count * self._each
        if self._running:
            self.gaps.append((now, self._each, self._count * len(self._running)))
        while self._running and self._running[0][0] <= self._steps:
            request = heapq.heappop(self._running)[2]
            for stack in request.stacks:
                self._applied[stack] -= 1
                if not self._applied[stack]:
                    del self._applied[stack]
            self._pairs -= len(request.stacks)
            self._finish(request, now)
        for request in self._reads:
            request.first = now
            if request.answer <= 1:
                self._finish(request, now)
                continue
            heapq.heappush(self._running, (self._steps + request.answer - 1, next(self._numbers), request))
            self._applied.update(request.stacks)
            self._pairs += len(request.stacks)
        self._reads.clear()

    def _finish(self, request: Request, now: float) -> None:
        request.finish = now
        self.load -= 1
        self.stacks.release(request.stacks)
        self._keep(request)
        self._grant_waiting(now)
        while self._loading and self._loading[0][0] <= now:
            self._ready.append(heapq.heappop(self._loading)[2])

    def _keep(self, request: Request) -> None:
        self._kept_tokens -= self._kept.pop(request.conversation, 0)
        self._kept[request.conversation] = request.prompt + request.answer
        self._kept_tokens += request.prompt + request.answer
        while self._kept_tokens > self.profile.kv_tokens:
            self._kept_tokens -= self._kept.popitem(last=False)[1]
