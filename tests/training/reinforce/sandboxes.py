"""A sandbox whose limits a test reaches soon."""

from __future__ import annotations

from training.reinforce.sandbox import Sandbox

SANDBOX = Sandbox(seconds=20.0, files=1 << 20, output=4096)
