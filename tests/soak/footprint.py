"""What a server holds when it has nothing to do: before a soak, and after it."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from tests.soak.outcome import Outcome
from tests.soak.server_process import Server, metrics

SETTLE_SECONDS = 30.0
"""How long an abort may take to free what its request held."""
MEMORY_SLACK = 48 << 20
"""Bytes that the allocator may keep beyond what it had after the warm-up."""
FILES_SLACK = 8
IDLE = ("brainstacks_running", "brainstacks_waiting", "brainstacks_kv_tokens_used")


@dataclass(frozen=True)
class Footprint:
    """Attributes:
    memory: resident bytes.
    files: open files and sockets.
    tracebacks: stack traces in the log so far.
    """

    memory: int
    files: int
    tracebacks: int

    @classmethod
    def of(cls, server: Server) -> Footprint:
        return cls(server.memory(), server.open_files(), server.tracebacks)

    async def compare(self, server: Server, outcome: Outcome) -> None:
        """Note in `outcome` whatever an idle `server` holds, or has logged, beyond this."""
        outcome.failures += await leftovers(server)
        after = Footprint.of(server)
        outcome.figures |= {"memory_before_bytes": self.memory, "memory_after_bytes": after.memory}
        grown = after.memory - self.memory
        outcome.require(grown <= MEMORY_SLACK, f"the server's memory has grown by {grown} bytes")
        opened = after.files - self.files
        outcome.require(opened <= FILES_SLACK, f"the server keeps {opened} more files or sockets open")
        traces = after.tracebacks - self.tracebacks
        first = "".join(server.first_trace)
        outcome.require(traces == 0, f"{traces} stack traces are in the log, the first:\n{first}")


async def leftovers(server: Server) -> list[str]:
    """What requests that are over still hold; empty as soon as nothing is held."""
    end = monotonic() + SETTLE_SECONDS
    async with server.client(admin=True) as client:
        while True:
            samples = await metrics(client)
            stacks = (await client.get("/admin/stacks")).raise_for_status().json()["stacks"]
            held = [f"{name} is {samples[name]:g}" for name in IDLE if samples[name]]
            held += [f"{s['domain']} is in use {s['in_flight']} times" for s in stacks if s["in_flight"]]
            if not held or monotonic() > end:
                return held
