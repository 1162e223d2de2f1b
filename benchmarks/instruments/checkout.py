"""Where this checkout is: programs are started there, and results and the demo's registry lie in it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
