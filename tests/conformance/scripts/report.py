"""How a script tells what came of what its client was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable

Check = Callable[[], None]


def report(
    *,
    plain: Check | None = None,
    streaming: Check | None = None,
    multi_turn: Check | None = None,
    structured: Check | None = None,
    tools: Check | None = None,
    logprobs: Check | None = None,
    errors: Check | None = None,
    routing: Check | None = None,
) -> None:
    """Run each check, and print one JSON object: what was asked -> "ok" or what went wrong.

    What is left out, the client does not offer.
    """
    checks = {name: check for name, check in locals().items() if check is not None}
    print(json.dumps({name: _outcome(check) for name, check in checks.items()}))


def expect(holds: object, otherwise: str) -> None:
    """Raises AssertionError: what was expected does not hold."""
    if not holds:
        raise AssertionError(otherwise)


def expect_raised(error: type[Exception], call: Callable[[], object]) -> None:
    """Raises AssertionError: the call did not raise it."""
    try:
        call()
    except error:
        return
    raise AssertionError(f"no {error.__name__}: an unknown model answered")


def _outcome(check: Check) -> str:
    try:
        check()
    except Exception as error:  # a check that fails keeps none of the others from running
        return f"{type(error).__name__}: {error}"
    return "ok"
