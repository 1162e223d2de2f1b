"""A server process that a soak starts, watches from outside, and ends, whatever happens."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2 as httpx
import psutil

from tests.soak.world import BASE_FLAGS, World

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"BRAINSTACKS_API_KEY": "", "OMP_NUM_THREADS": "1"}
"""One thread: the tiny base is no work for several, which on a busy machine would wait for one another."""

TRACE_LINES = 40

START_SECONDS, STOP_SECONDS = 300.0, 90.0
"""A fleet takes longest."""


class Server:
    """`python -m server` over a `World`; inference is open, `/admin` has a key.

    Args:
        files: how many it may open (`ulimit -n`); None for as many as this process.

    Attributes:
        url: where it listens, without a slash at the end.
        tracebacks: lines of its log that begin one.
        first_trace: the first one, and what follows.

    Raises:
        RuntimeError: it did not start; with the end of its log.
    """

    def __init__(self, world: World, flags: Sequence[str] = (), files: int | None = None) -> None:
        self.world = world
        self.model = world.base.name
        self.tracebacks = 0
        self.first_trace: list[str] = []
        self._admin = {"Authorization": f"Bearer {secrets.token_hex(16)}"}
        self._log: deque[str] = deque(maxlen=40)
        where = ["--base", str(world.base), "--registry", str(world.registry_path), "--port", "0"]
        limited = () if files is None else ("sh", "-c", f'ulimit -n {files} && exec "$@"', "sh")
        self._process = subprocess.Popen(
            [*limited, sys.executable, "-m", "server", *where, *BASE_FLAGS, *flags],
            env={**os.environ, **ENVIRONMENT, "BRAINSTACKS_ADMIN_KEY": self.admin_key},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        try:
            self.url = self._started()
            self._reader.start()  # a full pipe would stop the server
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def admin_key(self) -> str:
        return self._admin["Authorization"].removeprefix("Bearer ")

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        return url.host, url.port or 80

    def client(self, *, admin: bool = False) -> httpx.AsyncClient:
        """With as many connections as it needs, each request within a minute."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        headers = self._admin if admin else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, limits=limits)

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[0])

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended, and what it has started."""
        if self._process.poll() is None:
            for child in psutil.Process(self.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self._process.kill()
        self._process.wait()
        if self._reader.ident is not None:
            self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def stop(self) -> None:
        """End it as an operator does. Raises RuntimeError: it did not exit with 0."""
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(timeout=STOP_SECONDS):
            raise RuntimeError(f"the server ended with {self._process.returncode}:\n{self.log}")

    @property
    def log(self) -> str:
        """Its last lines."""
        return "".join(self._log)

    def _started(self) -> str:
        too_late = threading.Timer(START_SECONDS, self._process.kill)
        too_late.start()
        try:
            for line in self._process.stderr or ():
                self._log.append(line)
                found = re.search(r"running on (http://\S+:\d+)", line)
                if found:
                    return found[1]
        finally:
            too_late.cancel()
        raise RuntimeError(f"the server did not start:\n{self.log}")

    def _read_log(self) -> None:
        for line in self._process.stderr or ():
            self._log.append(line)
            self.tracebacks += line.startswith("Traceback")
            if self.tracebacks and len(self.first_trace) < TRACE_LINES:
                self.first_trace += [line]


@contextmanager
def serving(world: World, flags: Sequence[str] = (), files: int | None = None) -> Iterator[Server]:
    """A server for as long as the block lasts."""
    server = Server(world, flags, files)
    try:
        yield server
        server.stop()
    finally:
        server.kill()


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Every sample of `/metrics`: its name, labels included -> its value."""
    text = (await client.get("/metrics")).raise_for_status().text
    samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}
