"""Runs code that nobody trusts: a model's answers, and the tests that come with public data.

What holds: a process group of its own in a session of its own, in new namespaces of network, processes
(it sees and signals its own alone, and none outlives the run), mounts and IPC; of files
`confinement.SHOWN`, read-only, and one empty directory to write to, so none of an account, and no named
pipe, terminal or other device; no socket, but a pair that is joined already; no call of the kernel that
`confinement.calls_filter` refuses; no way to new rights; an empty environment; the standard library
alone (`python -I -S`); limits of time, CPU, memory, files, processes and output.

What does not: the kernel's own faults are open to it in the calls that are left. Under root it becomes
another user, who may still read what root may, of what it is shown: root's Python can be for root alone.
Memory is limited for each process, not for all; what the kernel keeps for pipes comes on top, by its own
limits. Answer and tests share a process: an answer that ends early does not pass, one that looks for the
word that says so in its caller's frames could. Where a system gives no namespaces, or no filter of
calls, nothing is run.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brainstacks.errors import ConfigError
from training.reinforce import confinement

Ended = Literal["passed", "failed", "time", "output"]

_CHUNK = 65536
_LINKED = ("zlib", "_bz2", "_ctypes", "_hashlib", "_lzma", "_sqlite3")
"""Modules that a Python may lack, and that need libraries of the system where it has them."""


@dataclass(frozen=True)
class Ran:
    """What became of a program.

    Attributes:
        ended: `passed`: every part came to its end; `failed`: one raised, left early or was killed; `time`,
            `output`: it was stopped at that limit.
        output: what it wrote to stdout and stderr, up to the limit; at the end the error, if one was raised.
    """

    ended: Ended
    output: str


@dataclass(frozen=True)
class Sandbox:
    """Limits of a run.

    Attributes:
        seconds: of wall time, for all of it; every process may use as much of a CPU.
        memory: bytes of address space, of each process.
        files: bytes that are written to files and shared memory, of each and of all together.
        processes: that there are at once, threads too.
        output: bytes.
    """

    seconds: float = 5.0
    memory: int = 1 << 30
    files: int = 16 << 20
    processes: int = 16
    output: int = 64 << 10

    def passes(self, code: str, tests: str) -> bool:
        """Whether `code`, and then `tests` as a program that has imported it, end. Raises as `run`."""
        return self.run({"answer": code, "tests": tests}).ended == "passed"

    def problem(self) -> str | None:
        """Why programs cannot run here, in words; None where they can."""
        modules = ("math", *filter(importlib.util.find_spec, _LINKED))
        try:
            ran = self.run({"check": f"import {', '.join(modules)}"})
        except ConfigError as error:
            return error.message
        if ran.ended == "passed":
            return None
        return (
            f"the sandbox cannot run a line of Python here ({ran.ended}: {ran.output.strip()}); it needs "
            "more time or memory, or libraries from where it sees none: use a Python whose libraries are in "
            "its own directory or the system's"
        )

    def check(self) -> None:
        """Raises ConfigError: programs cannot run here; better said before hours of work that needs it."""
        problem = self.problem()
        if problem is not None:
            raise ConfigError(problem)

    def run(self, parts: Mapping[str, str]) -> Ran:
        """Run `parts` (name -> source) one after another, in one namespace.

        The last is run as `__main__`; those before it as modules of their names, so that what they do as
        programs (`if __name__ == "__main__":`) is not done.

        Raises:
            ConfigError: the system gives no namespaces, or no filter of calls, so nothing was run.
        """
        word = secrets.token_hex(16)
        read, write = os.pipe()
        try:
            with tempfile.TemporaryDirectory(prefix="sandbox-") as work:
                job = {"parts": dict(parts), "word": word, "done": write, **self._limits()}
                process = subprocess.Popen(
                    [os.path.realpath(sys.executable), "-I", "-S", "-B", str(Path(confinement.__file__))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd=work,
                    env={},
                    start_new_session=True,
                    pass_fds=(write,),
                )
                stopped, output = self._watch(process, json.dumps(job).encode())
            said = _said(read)
        finally:
            os.close(read)
            os.close(write)
        text = output.decode("utf-8", "replace")
        if process.returncode == confinement.REFUSED and stopped is None:
            raise ConfigError(
                f"this system does not let a process shut itself in ({text.strip()}), so code of answers is "
                "not run; allow user namespaces (sysctl user.max_user_namespaces, "
                "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, or the "
                "container's seccomp profile), mounts in them and seccomp filters, on Linux 5.12 or later; "
                "or leave out what runs code"
            )
        return Ran(stopped or ("passed" if said == word.encode() else "failed"), text)

    def _limits(self) -> dict[str, object]:
        limits = {
            "RLIMIT_CPU": math.ceil(self.seconds) + 1,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": self.files,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_CORE": 0,
        }
        return {"files": self.files, "limits": limits}

    def _watch(self, process: subprocess.Popen[bytes], job: bytes) -> tuple[Ended | None, bytes]:
        """(the limit that it was stopped at, its output), when it has ended, and all that it started."""
        end = time.monotonic() + self.seconds
        stopped, output = None, b""
        try:
            stopped, output = self._read(process, job, end)
            if stopped is None:
                process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:  # it has closed its output, and goes on
            stopped = "time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return stopped, output[: self.output]

    def _read(self, process: subprocess.Popen[bytes], job: bytes, end: float) -> tuple[Ended | None, bytes]:
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process was started without pipes")
        output = b""
        with stdout, selectors.DefaultSelector() as selector:
            with suppress(BrokenPipeError), stdin:  # who is refused need not read all; its status says so
                stdin.write(job)
            selector.register(stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, end - time.monotonic())):
                found = os.read(stdout.fileno(), _CHUNK)
                output += found
                if len(output) > self.output:
                    return "output", output
                if not found:
                    return None, output
        return "time", output


def _said(pipe: int) -> bytes:
    """What is in `pipe`, whose other end this process holds too."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, _CHUNK)
    except BlockingIOError:
        return b""
