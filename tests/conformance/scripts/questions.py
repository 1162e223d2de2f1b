"""What every client asks, and whom: `python -m tests.conformance.scripts.<script> URL MODEL`."""

from __future__ import annotations

import sys
from typing import Any

URL, MODEL = sys.argv[1:]
"""Of the server, with `/v1` at the end; its base."""
KEY = "none"
"""Clients want one; the server has none."""
UNKNOWN = "unknown"
"""A model that the server has not."""

QUESTION = "Name three colours."
FOLLOW_UP = "Which of them is the darkest?"
TOKENS = 24
"""Most that a text may have."""

RECORD = "Ada is 36 years old. Give her name and her age."
PRODUCT = "What is 17 * 3?"
CALL_TOKENS = 64
"""Most that an object or a call may have."""

MULTIPLY: Any = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "Multiply two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
ROUTING: Any = {"routing": {"mode": "fixed", "weights": {"math": 0.9}}}
"""For clients that send fields of ours; the answer's `routing` then says that `math` alone is active."""


def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers."""
    return a * b
