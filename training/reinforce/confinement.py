"""What the sandbox's process runs: it shuts itself in, and then runs code that nobody trusts.

A program of its own, of the standard library alone, started by `sandbox.py`, which says on stdin what to do.
Three processes: the first opens the namespaces, the second is their init, which ends all others when it ends,
the third gives up what it may and runs the code.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

REFUSED = 125
"""Exit status: the system gives no namespaces; the reason is on stderr. No code has run."""

NOBODY = 65534
OWN = 1 << 20
"""Above it are the users that root becomes: each run another, as the system counts processes by user."""

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_PDEATHSIG, _KEEPCAPS, _NO_NEW_PRIVS = 1, 8, 38
_CAPABILITY_VERSION, _READ_SEARCH = 0x20080522, 1 << 2

HIDDEN = ("/proc", "/run", "/sys", "/dev/shm")
"""Of other processes' environments, sockets and shared memory the code sees nothing."""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    job = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    root, user = os.getuid() == 0, OWN + os.getpid()
    try:
        _open_namespaces(root)
        _shut_files(os.getcwd(), job["files"])
    except OSError as error:
        print(error.strerror, flush=True)
        os._exit(REFUSED)
    init = os.fork()
    if init:
        os.close(job["done"])
        _exit_as(init)
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    code = os.fork()
    if code:
        os.close(job["done"])
        _exit_as(code)
    _limit(job)
    _give_up(user if root else None)
    _run(job)


def _open_namespaces(root: bool) -> None:
    """Of network, processes, mounts and IPC. Who is not root needs one of users for that."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEWNS | _NEWIPC | _NEWPID | _NEWNET | (0 if root else _NEWUSER))
    if not root:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _shut_files(work: str, size: int) -> None:
    """Everything read-only, but for an empty file system of `size` bytes at `work`."""
    _call("mount", None, b"/", None, _REC | _PRIVATE, None)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    for place in (*filter(os.path.isdir, HIDDEN), work):
        room = size if place == work else 1 << 20
        options = f"size={room},nr_inodes=1024,mode=1777".encode()
        _call("mount", b"tmpfs", place.encode(), b"tmpfs", _NOSUID | _NODEV, options)
    os.chdir(work)


def _limit(job: Mapping[str, Any]) -> None:
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))


def _give_up(user: int | None) -> None:
    """Every capability.

    Args:
        user: that root becomes, who may still read what root does: its Python may be there.
    """
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    if user is not None:
        _call("prctl", _KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        try:
            os.setresuid(user, user, user)
        except OSError:  # a container that knows few users
            os.setresuid(NOBODY, NOBODY, NOBODY)
    kept = 0 if user is None else _READ_SEARCH
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0))


def _run(job: Mapping[str, Any]) -> None:
    """Run the parts one after another in one namespace; say so on `done` when the last came to its end."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    done, word, own = job["done"], job["word"], os.getpid()
    for name, source in job["parts"].items():
        try:
            exec(compile(source, f"<{name}>", "exec"), scope)
        except BaseException as error:  # whatever untrusted code raises, SystemExit too
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
    sys.stdout.flush()
    if os.getpid() == own:  # and none that the code has forked
        os.write(done, word.encode())
    os._exit(0)


def _exit_as(process: int) -> None:
    """End when `process` does: with status 0 where it did."""
    os._exit(0 if os.waitpid(process, 0)[1] == 0 else 1)


def _call(name: str, *arguments: Any) -> None:
    """Raises OSError: the C library's `name` failed."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
