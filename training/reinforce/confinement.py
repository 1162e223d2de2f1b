"""What the sandbox's process runs: it shuts itself in, and then runs code that nobody trusts.

A program of its own, of the standard library alone, started by `sandbox.py`, which says on stdin what to
do. Three processes: the first opens the namespaces, leaves the file system for one that holds what Python
needs, and has the kernel refuse what `calls_filter` names; the second is the namespaces' init, which ends
all others when it ends; the third gives up what it may and runs the code.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

REFUSED = 125
"""Exit status: the system lets no process shut itself in; the reason is on stdout. No code has run."""

NOBODY = 65534
OWN = 1 << 20
"""Above it are the users that root becomes: each run another, as the system counts processes by user."""

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _REC, _PRIVATE = 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_READ_ONLY, _NOSUID, _NODEV = 1, 2, 4
_PDEATHSIG, _KEEPCAPS, _SECCOMP, _NO_NEW_PRIVS = 1, 8, 22, 38
_CAPABILITY_VERSION, _READ_SEARCH = 0x20080522, 1 << 2

SHOWN = (
    "/usr",
    "/bin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
    *(f"/home/linuxbrew/.linuxbrew/{name}" for name in ("Cellar", "lib", "opt")),
    *(
        f"{prefix}/{name}"
        for prefix in (sys.base_prefix, os.path.realpath(sys.base_prefix))
        for name in ("bin", "lib", "lib64")
    ),
)
"""What the code sees of files, read-only: the system's programs and libraries, and its own Python's."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Whose calls are known -> the word by which the kernel tells a filter whose number it sees."""
REFUSED_CALLS = {
    # One that is bound to a path is of no network namespace, and no read-only mount stops it.
    "socket": (41, 198),
    # What they keep counts for no process and for no file system.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "io_setup": (206, 0),
    # Ways to more rights, to other files, to other processes and to the account's keys.
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # No answer needs them, and the kernel had many faults in them.
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
}
"""System calls -> their numbers, of each of `MACHINES`."""
_SOCKETPAIR, _CLONE, _CLOSE_RANGE, _FIRST_NEW = (53, 199), (56, 220), 436, 424
_NAMESPACES, _AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 0x7E020000, 1, 1, 0xF
_LOAD, _AND, _EQUAL, _AT_LEAST, _HAS_ANY, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, (16, 24)
_ALLOWED, _FAILS, _KILLED = 0x7FFF0000, 0x50000, 0x80000000

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    job = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    root, user = os.getuid() == 0, OWN + os.getpid()
    try:
        calls = calls_filter(os.uname().machine)
        _open_namespaces(root)
        _leave_files(os.getcwd(), job["files"])
        _refuse_calls(calls)
    except OSError as error:
        print(": ".join(filter(None, (error.filename, error.strerror))), flush=True)
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


def _leave_files(work: str, size: int) -> None:
    """For `SHOWN`, `DEVICES`, and an empty file system of `size` bytes at `work`, for shared memory too.

    There is no way back without a capability or a descriptor from outside, and to whose root is changed the
    kernel gives no namespace of users to get a capability in.
    """
    os.umask(0o022)
    _call("mount", None, b"/", None, _REC | _PRIVATE, None)
    _mount_empty(work, "size=1m,mode=755")
    for place in filter(os.path.exists, (*SHOWN, *DEVICES)):
        _show(place, work + place)
    os.symlink(work, f"{work}/dev/shm")
    os.makedirs(work + work)
    _set_attributes(work, _READ_ONLY | _NOSUID | _NODEV)
    _mount_empty(work + work, f"size={size},nr_inodes=1024,mode=1777")
    os.chroot(work)
    os.chdir(work)


def _mount_empty(place: str, options: str) -> None:
    _call("mount", b"tmpfs", place.encode(), b"tmpfs", _NOSUID | _NODEV, options.encode())


def _show(source: str, place: str) -> None:
    """What is at `source` at `place` too, read-only; only what is of `DEVICES` is a device there."""
    os.makedirs(place if os.path.isdir(source) else os.path.dirname(place), exist_ok=True)
    if not os.path.exists(place):
        os.close(os.open(place, os.O_CREAT))
    _call("mount", source.encode(), place.encode(), None, _BIND | _REC, None)
    _set_attributes(place, _READ_ONLY | _NOSUID | (0 if source in DEVICES else _NODEV), _AT_RECURSIVE)


def _set_attributes(place: str, attributes: int, flags: int = 0) -> None:
    """Of a mount; with `_AT_RECURSIVE` of those below it too."""
    words = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, place.encode(), flags, words, ctypes.sizeof(words))


def calls_filter(machine: str) -> bytes:
    """The program, of classic BPF as seccomp takes it, that decides which calls of the kernel go through.

    `REFUSED_CALLS` fail with EPERM, so do new namespaces, and pairs of sockets but of streams: others could
    be sent elsewhere. Calls newer than Linux 5.0, but `close_range`, fail with ENOSYS, as on an older kernel.
    Among them are `io_uring_setup`, `clone3` (a filter does not see its flags; the C library then takes
    `clone`) and those of the x32 interface, whose numbers are larger still. A call of another machine, as a
    32-bit program's, ends the process.

    Raises:
        OSError: the calls of `machine` are not known.
    """
    if machine not in MACHINES or sys.platform != "linux":
        known = " and ".join(MACHINES)
        raise OSError(
            errno.ENOSYS, f"it is written for Linux on {known}, this is {sys.platform} on {machine}"
        )
    column = list(MACHINES).index(machine)
    allow, refuse = (_RETURN, 0, 0, _ALLOWED), (_RETURN, 0, 0, _FAILS | errno.EPERM)
    program = [  # (what, how many to skip where it holds, and where it does not, with what)
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, MACHINES[machine]),
        (_RETURN, 0, 0, _KILLED),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 1, _CLOSE_RANGE),
        allow,
        (_AT_LEAST, 0, 1, _FIRST_NEW),
        (_RETURN, 0, 0, _FAILS | errno.ENOSYS),
    ]
    for numbers in REFUSED_CALLS.values():
        program += [(_EQUAL, 0, 1, numbers[column]), refuse]
    program += [
        (_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _ARGUMENTS[0]),
        (_HAS_ANY, 0, 1, _NAMESPACES),
        refuse,
        allow,
        (_EQUAL, 0, 6, _SOCKETPAIR[column]),
        (_LOAD, 0, 0, _ARGUMENTS[0]),
        (_EQUAL, 0, 3, _AF_UNIX),
        (_LOAD, 0, 0, _ARGUMENTS[1]),
        (_AND, 0, 0, _SOCK_TYPE),
        (_EQUAL, 1, 0, _SOCK_STREAM),
        refuse,
        allow,
    ]
    return b"".join(struct.pack("HBBI", *step) for step in program)


def _refuse_calls(program: bytes) -> None:
    steps = ctypes.create_string_buffer(program)
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _SECCOMP, 2, struct.pack("HP", len(program) // 8, ctypes.addressof(steps)), 0, 0)


def _limit(job: Mapping[str, Any]) -> None:
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))


def _give_up(user: int | None) -> None:
    """Every capability.

    Args:
        user: that root becomes, who may still read what root does: its Python may be there.
    """
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
    """Run the parts one after another in one module; say so on `done` when the last came to its end.

    The last is run as a program, `__main__`; those before it as if it had imported them, by their names.
    """
    module, last = ModuleType("__main__"), list(job["parts"])[-1]
    sys.modules["__main__"] = module  # in place of this one
    done, word, own = job["done"], job["word"], os.getpid()
    for name, source in job["parts"].items():
        module.__name__ = "__main__" if name == last else name
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
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
