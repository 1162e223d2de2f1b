"""`schemathesis`: reads the OpenAPI document, and sends a few requests to each route but the operator's."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conformance.scripts.questions import URL
from tests.conformance.scripts.report import expect, report

CASES = 5
"""Requests per route."""
UNTOLD = "positive_data_acceptance"
"""Wants every body that fits its schema to be taken; rules between fields are not in a schema."""


def plain() -> None:
    program = Path(sys.executable).parent / "schemathesis"
    chosen = ["--phases", "fuzzing", "--max-examples", str(CASES), "--seed", "1"]
    left_out = ["--exclude-path-regex", "^/admin", "--exclude-checks", UNTOLD]
    command = [str(program), "run", f"{URL.removesuffix('/v1')}/openapi.json", "--no-color"]
    with tempfile.TemporaryDirectory() as folder:  # it leaves files where it runs
        ran = subprocess.run([*command, *chosen, *left_out], cwd=folder, capture_output=True, text=True)
    _, _, failures = ran.stdout.partition("= FAILURES =")
    said = re.sub("[=_]{4,}", "", failures or ran.stdout or ran.stderr)
    expect(ran.returncode == 0, " ".join(said.split())[:300])


report(plain=plain)
