"""The real server as a process, for benchmarks over HTTP."""

from __future__ import annotations

import io
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx

from benchmarks.instruments.checkout import ROOT

STOP_SECONDS = 60
LOG_LINES = 30


@dataclass(frozen=True)
class ServerProcess:
    """A server that is ready.

    Attributes:
        url: where it listens, without a slash at the end.
        model: the base's name, which every model name begins with.
        admin_key: for `/admin`; inference is open.
        pid: of its process.
        startup: lines of its log until it was ready, the last `LOG_LINES` of them.
    """

    url: str
    model: str
    admin_key: str
    pid: int
    startup: tuple[str, ...]

    def admin(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.admin_key}"}, timeout=600
        )


@contextmanager
def running(
    registry: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Start `python -m server` on a free port, and end it by SIGTERM.

    Args:
        arguments: further flags.
        environment: in place of this process's.

    Raises:
        RuntimeError: it did not start, or did not end as it should; with the end of its log.
    """
    key = secrets.token_hex(16)
    log: deque[str] = deque(maxlen=LOG_LINES)
    started: Future[str] = Future()
    with subprocess.Popen(
        [sys.executable, "-m", "server", "--port", "0", "--registry", str(registry), *arguments],
        env={
            **(os.environ if environment is None else environment),
            "BRAINSTACKS_ADMIN_KEY": key,
            "BRAINSTACKS_API_KEY": "",
        },
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        if process.stderr is None:
            raise RuntimeError("the server's process has no stderr")
        lines = io.TextIOWrapper(process.stderr, newline="\n")
        # Reads to the end: a full pipe would stop the server.
        reader = threading.Thread(target=_read, args=(lines, log, started), daemon=True)
        reader.start()
        try:
            url = started.result()
            answer = httpx.get(f"{url}/v1/models", timeout=60).raise_for_status()
            model = answer.json()["data"][0]["id"]
            yield ServerProcess(url, model, key, process.pid, tuple(line.rstrip() for line in log))
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=STOP_SECONDS):
                raise RuntimeError(f"the server ended with {process.returncode}:\n{''.join(log)}")
        finally:
            process.kill()  # does nothing when it has ended
            reader.join()


def _read(lines: Iterable[str], log: deque[str], started: Future[str]) -> None:
    """Keep the end of the server's log; `started` gets its address, or why there is none."""
    for line in lines:
        log.append(line.rpartition("\r")[2])  # of a progress bar, its last state
        found = re.search(r"running on (http://\S+:\d+)", line)
        if found and not started.done():
            started.set_result(found[1])
    if not started.done():
        started.set_exception(RuntimeError(f"the server did not start:\n{''.join(log)}"))
