"""How much one key may ask for, by the minute and at one time; OpenAI's headers say what is left."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from server.errors import RequestRefused
from server.settings import Settings

MINUTE = 60.0


@dataclass
class Bucket:
    """Holds `most`, and gets as much back in a minute, evenly.

    Attributes:
        taken: what is missing in it at the time `at` (seconds).
    """

    most: int
    at: float
    taken: float = 0.0

    def refill(self, now: float) -> None:
        self.taken = max(0.0, self.taken - (now - self.at) * self.most / MINUTE)
        self.at = now

    def wait(self, amount: float) -> float:
        """Seconds until it holds `amount`; infinite for more than it ever holds."""
        if amount > self.most:
            return math.inf
        return max(0.0, (self.taken + amount - self.most) * MINUTE / self.most)

    def headers(self, what: str) -> dict[str, str]:
        """`x-ratelimit-*` of OpenAI."""
        return {
            f"x-ratelimit-limit-{what}": str(self.most),
            f"x-ratelimit-remaining-{what}": str(max(0, math.floor(self.most - self.taken))),
            f"x-ratelimit-reset-{what}": f"{self.taken * MINUTE / self.most:.3f}s",
        }


@dataclass
class Account:
    """What one key has taken."""

    buckets: dict[str, Bucket]
    sequences: int = 0


@dataclass
class Ticket:
    """A request that was let in, and what it holds. `settle` gives back what it did not use."""

    account: Account
    sequences: int
    tokens: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def settle(self, used_tokens: int) -> None:
        """Once; a second time it does nothing."""
        self.account.sequences -= self.sequences
        tokens = self.account.buckets.get("tokens")
        if tokens is not None:
            tokens.taken -= max(0, self.tokens - used_tokens)
        self.sequences = self.tokens = 0


class RateLimits:
    """Every limit is off unless its option is given. Callers without a key are one.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        rates = {"requests": settings.key_requests_per_minute, "tokens": settings.key_tokens_per_minute}
        self._rates = {what: most for what, most in rates.items() if most is not None}
        self._sequences = settings.key_sequences
        self._clock = clock
        self._accounts = defaultdict[str, Account](self._open)

    def admit(self, key: str, sequences: int = 0, tokens: int = 0) -> Ticket:
        """Let a request in, or raise RequestRefused: 429, with Retry-After where waiting helps.

        Args:
            key: the name of the key; empty for none.
            sequences: that it runs; none for one that generates nothing.
            tokens: the most that it can come to use, prompt and completions.
        """
        account = self._accounts[key]
        self._take(account, {"requests": 1, "tokens": tokens}, sequences)
        return Ticket(account, sequences, tokens, self._headers(account))

    def extend(self, ticket: Ticket, sequences: int, tokens: int) -> None:
        """Let a request that was let in have more. Raises as `admit`; it then holds what it held."""
        self._take(ticket.account, {"requests": 0, "tokens": tokens}, sequences)
        ticket.sequences += sequences
        ticket.tokens += tokens
        ticket.headers = self._headers(ticket.account)

    def _take(self, account: Account, asked: Mapping[str, int], sequences: int) -> None:
        """All of it, or nothing."""
        now = self._clock()
        for bucket in account.buckets.values():
            bucket.refill(now)
        for what, bucket in account.buckets.items():
            if (seconds := bucket.wait(asked[what])) > 0:
                limit = f"{bucket.most} {what} a minute"
                raise self._refused(account, f"It asks for {asked[what]} {what}", limit, seconds)
        if self._sequences is not None and account.sequences + sequences > self._sequences:
            limit = f"{self._sequences} sequences (prompts x n) at one time"
            seconds = 1.0 if sequences <= self._sequences else math.inf
            raise self._refused(
                account, f"{account.sequences} run and {sequences} are asked for", limit, seconds
            )
        for what, bucket in account.buckets.items():
            bucket.taken += asked[what]
        account.sequences += sequences

    def _open(self) -> Account:
        now = self._clock()
        return Account({what: Bucket(most, now) for what, most in self._rates.items()})

    def _headers(self, account: Account) -> dict[str, str]:
        return {k: v for what, bucket in account.buckets.items() for k, v in bucket.headers(what).items()}

    def _refused(self, account: Account, asked: str, limit: str, seconds: float) -> RequestRefused:
        headers = self._headers(account)
        way_out = "ask for less: n, max_tokens or the prompt"
        if seconds < math.inf:
            headers["Retry-After"] = str(math.ceil(seconds))
            way_out = f"retry in {math.ceil(seconds)} s"
        message = f"{asked}; the key has {limit}; {way_out}"
        return RequestRefused(429, message, code="rate_limit_exceeded", headers=headers)
