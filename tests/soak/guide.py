"""`docs/adding_a_domain.md`, followed to the letter by a shell, and timed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from tests.documents import GUIDE, ROOT, steps
from tests.soak.outcome import Outcome, Say

PORT = 8000
"""In the guide; a free one takes its place."""

READY = f"""
server=$!
trap 'kill $server; wait $server' EXIT
until curl -sf localhost:{PORT}/ready > /dev/null; do kill -0 $server; sleep 0.2; done
"""


def guide(directory: Path, seconds: float, say: Say) -> Outcome:
    """Everything that the guide has its reader run and save, one after the other, on the real base.

    Args:
        directory: takes the place of the checkout, with its environment and a copy of its registry.
        seconds: the most that all of it may take.
    """
    text = GUIDE.read_text(encoding="utf-8")
    outcome = Outcome()
    (directory / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(ROOT / "stacks_registry", directory / "stacks_registry")  # a link would be published to
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    todo = [*steps(text), ("run", "true")]  # the last one tells when the one before it was done
    script = "set -eu\n" + "".join(_timed(*step) for step in todo)
    done = subprocess.run(
        ["bash", "-c", script.replace(f"localhost:{PORT}", f"localhost:{port}")],
        cwd=directory,
        env={**os.environ, "BRAINSTACKS_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    say(done.stdout)
    outcome.require(done.returncode == 0, f"a command failed: {done.stdout[-2000:]}")
    times = [float(at) for at in re.findall(r"^step at ([\d.]+)$", done.stdout, re.MULTILINE)]
    for (what, body), begin, end in zip(todo, times, times[1:], strict=False):
        outcome.figures[f"{what if what != 'run' else body.splitlines()[0][:60]}, s"] = end - begin
    promised = re.findall(r"^answers `([^`]+)`", text, re.MULTILINE)
    outcome.require(bool(promised), "the guide promises no answer")
    outcome.require(all(answer in done.stdout for answer in promised), f"not answered: {promised}")
    return outcome


def _timed(what: str, body: str) -> str:
    """One step as a shell runs it, after the time at which it begins."""
    mark = 'printf "\\nstep at %s\\n" $(date +%s.%N)\n'
    if what.startswith("save "):
        return f"{mark}cat > {what.removeprefix('save ')} <<'END OF FILE'\n{body}END OF FILE\n"
    if body.startswith("brainstacks-serve"):
        return f"{mark}{body} > server.log 2>&1 &{READY}"
    return f"{mark}{body}\n"
