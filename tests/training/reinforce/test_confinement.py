"""What the sandbox's process may ask of the kernel, and what it sees: under root and another account."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.training.reinforce.sandboxes import SANDBOX
from training.reinforce import confinement
from training.reinforce.sandbox import Ran

pytestmark = pytest.mark.usefixtures("namespaces")
STRANGER = 23456
AS_STRANGER = f"""
import json, os, sys
from training.reinforce import confinement
from training.reinforce.sandbox import Sandbox

confinement.__file__, sys.executable, source = sys.argv[1:]
os.setgroups([])
os.setresgid({STRANGER}, {STRANGER}, {STRANGER})
os.setresuid({STRANGER}, {STRANGER}, {STRANGER})
ran = Sandbox(seconds=20.0, files=1 << 20, output=4096).run({{"answer": source}})
print(json.dumps([ran.ended, ran.output]))
"""


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every account may enter and write to."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture(params=["this account", "another than root"])
def account(request: pytest.FixtureRequest, open_place: Path) -> Runs:
    return Runs(None if request.param == "this account" else open_place)


class Runs:
    """The sandbox under this account, or under one that root becomes; it needs a Python that it can reach."""

    def __init__(self, open_place: Path | None) -> None:
        self.stranger = open_place is not None
        if open_place is None:
            return
        if os.getuid() != 0:
            pytest.skip("these tests run under an account without rights already")
        self._program = shutil.copy(confinement.__file__, open_place)
        Path(self._program).chmod(0o644)
        self._python = next(filter(_is_reached, (os.path.realpath(sys.executable), "/usr/bin/python3")), None)
        if self._python is None:
            pytest.skip("other accounts have no Python here")

    def __call__(self, source: str) -> Ran:
        if not self.stranger:
            return SANDBOX.run({"answer": source})
        command = [sys.executable, "-c", AS_STRANGER, self._program, str(self._python), source]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return Ran(*json.loads(found.stdout))

    def give(self, path: Path, mode: int) -> None:
        """Have whoever runs the sandbox own `path`."""
        path.chmod(mode)
        if self.stranger:
            os.chown(path, STRANGER, STRANGER)


def _is_reached(python: str) -> bool:
    try:
        subprocess.run([python, "-ISc", ""], user=STRANGER, group=STRANGER, check=True)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("mode", [0o777, 0o700])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_service_that_listens_at_a_path_is_not_reached(
    account: Runs, open_place: Path, mode: int, kind: socket.SocketKind
) -> None:
    path = open_place / "service"
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(path))
        if kind == socket.SOCK_STREAM:
            server.listen()
        account.give(path, mode)
        server.setblocking(False)
        found = account(f"import socket\nsocket.socket(socket.AF_UNIX, {kind}).connect('{path}')")
        assert (found.ended, "PermissionError" in found.output) == ("failed", True)
        pair = f"import socket\nsocket.socketpair(socket.AF_UNIX, {kind})[0].sendto(b'x', '{path}')"
        assert account(pair).ended == "failed"
        with pytest.raises(BlockingIOError):
            server.recv(1) if kind == socket.SOCK_DGRAM else server.accept()


def test_a_pipe_with_a_name_is_neither_read_nor_written(account: Runs, open_place: Path) -> None:
    path = open_place / "pipe"
    os.mkfifo(path)
    account.give(path, 0o666)
    with closing(os.fdopen(os.open(path, os.O_RDWR | os.O_NONBLOCK), "r+b", buffering=0)) as held:
        found = account(f"import os\nos.write(os.open('{path}', os.O_WRONLY | os.O_NONBLOCK), b'x')")
        assert "FileNotFoundError" in found.output
        assert held.read(1) is None, "nothing has come"
        held.write(b"secret")
        assert "FileNotFoundError" in account(f"print(open('{path}').read(6))").output
        assert held.read(6) == b"secret"


def test_no_terminal_is_read_or_written(account: Runs) -> None:
    own, other = pty.openpty()
    name = os.ttyname(other)
    try:
        account.give(Path(name), 0o666)
        found = account(f"import os\nos.write(os.open('{name}', os.O_RDWR | os.O_NOCTTY), b'x')")
    finally:
        os.close(own)
        os.close(other)
    assert "FileNotFoundError" in found.output
    assert "FileNotFoundError" in account("open('/dev/ptmx')").output


def test_of_files_it_sees_those_that_python_needs_and_devices_without_a_state(
    account: Runs, open_place: Path
) -> None:
    (open_place / "secret").write_text("hunter2")
    assert "FileNotFoundError" in account(f"print(open('{open_place}/secret').read())").output
    found = account(
        "import os, zlib, sqlite3, hashlib, zoneinfo\n"
        "assert not {'/etc/passwd', '/proc/self', '/root/.profile', '/var/tmp'} & set(filter(\n"
        "    os.path.exists, ['/etc/passwd', '/proc/self', '/root/.profile', '/var/tmp']))\n"
        "open('/dev/null', 'w').write('x')\n"
        "assert open('/dev/zero', 'rb').read(2) == bytes(2) and open('/dev/urandom', 'rb').read(1)\n"
        "for path in ('/x', '/usr/x', '/dev/x', os.__file__ + '.x'):\n"
        "    try:\n        open(path, 'w')\n"
        "    except OSError:\n        pass\n"
        "    else:\n        raise AssertionError(path)\n"
    )
    assert found == Ran("passed", "")


def test_memory_that_no_process_owns_is_refused(account: Runs) -> None:
    """System V segments and memfds count in no limit of a process, nor in the size of the file system."""
    segments = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600) < 0:\n"
        "    raise OSError(ctypes.get_errno(), 'refused')\n"
    )
    for source in (segments, "import os\nos.write(os.memfd_create('x'), bytes(1 << 20))"):
        assert "PermissionError" in account(source).output
    shared = "from multiprocessing import Lock\nwith open('/dev/shm/x', 'wb') as file:\n    file.write({})"
    assert account(f"{shared.format('bytes(1 << 16)')}\nLock()").ended == "passed"
    both = f"open('y', 'wb').write(bytes(1 << 19))\n{shared.format('bytes(1 << 20)')}"
    assert "No space left" in account(both).output, "shared memory and files have one limit together"


def test_no_namespace_and_no_handle_leads_out(account: Runs) -> None:
    calls = {"unshare": "0x10000000", "setns": "0, 0", "ptrace": "0, 0, 0, 0", "open_by_handle_at": "0, 0, 0"}
    for name, arguments in calls.items():
        found = account(
            "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            f"assert libc.{name}({arguments}) == -1 and ctypes.get_errno() == errno.EPERM, ctypes.get_errno()"
        )
        assert found == Ran("passed", ""), name


def test_threads_processes_and_event_loops_work(account: Runs) -> None:
    found = account(
        "import asyncio, subprocess, sys, threading\n"
        "from multiprocessing import get_context\n"
        "async def late():\n    await asyncio.sleep(0)\n    return 4\n"
        "assert asyncio.run(late()) == 4\n"
        "thread = threading.Thread(target=print, args=['thread'])\nthread.start()\nthread.join()\n"
        "with get_context('fork').Pool(2) as pool:\n    assert pool.map(abs, [-1, -2]) == [1, 2]\n"
        "print(subprocess.run([sys.executable, '-ISc', 'print(5)'], capture_output=True).stdout)\n"
    )
    assert found == Ran("passed", "thread\nb'5\\n'\n")


X86, ARM = "x86_64", "aarch64"
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


def decided(program: bytes, number: int, arguments: tuple[int, ...], machine: int) -> int:
    """What the kernel does of a call, by the rules of classic BPF."""
    data = struct.pack("<iIQ6Q", number, machine, 0, *arguments, *[0] * (6 - len(arguments)))
    steps, at, held = list(struct.iter_unpack("HBBI", program)), 0, 0
    while True:
        code, holds, fails, value = steps[at]
        at += 1
        match code:
            case 0x06:
                return int(value)
            case 0x20:
                (held,) = struct.unpack_from("<I", data, value)
            case 0x54:
                held &= value
            case 0x15 | 0x35 | 0x45:
                at += holds if {0x15: held == value, 0x35: held >= value, 0x45: held & value}[code] else fails
            case _:
                raise AssertionError(f"no such step: {code:#x}")


@pytest.mark.parametrize(
    ("name", "machine", "number", "arguments", "expected"),
    [
        ("getpid", X86, 39, (), "allowed"),
        ("getpid", ARM, 172, (), "allowed"),
        ("openat", X86, 257, (), "allowed"),
        ("openat", ARM, 56, (), "allowed"),
        ("socket", X86, 41, (1, 1), EPERM),
        ("socket", ARM, 198, (1, 1), EPERM),
        ("socketpair of a stream", X86, 53, (1, 0x80801), "allowed"),
        ("socketpair of a stream", ARM, 199, (1, 1), "allowed"),
        ("socketpair of datagrams", X86, 53, (1, 0x80002), EPERM),
        ("socketpair of datagrams", ARM, 199, (1, 2), EPERM),
        ("socketpair of another family", X86, 53, (30, 1), EPERM),
        ("clone of a thread", X86, 56, (0x3D0F00,), "allowed"),
        ("clone of a thread", ARM, 220, (0x3D0F00,), "allowed"),
        *((f"clone of {flag:#x}", X86, 56, (flag | 17,), EPERM) for flag in (1 << 17, 1 << 28, 1 << 30)),
        *((f"clone of {flag:#x}", ARM, 220, (flag | 17,), EPERM) for flag in (1 << 17, 1 << 28, 1 << 30)),
        *(("new", machine, number, (), ENOSYS) for machine in (X86, ARM) for number in (425, 435, 438, 999)),
        *(("close_range", machine, 436, (), "allowed") for machine in (X86, ARM)),
        ("x32's getpid", X86, 0x40000000 | 39, (), ENOSYS),
        ("none", X86, -1, (), ENOSYS),
    ],
)
def test_the_filter_decides_of_each_machines_calls(
    name: str, machine: str, number: int, arguments: tuple[int, ...], expected: int | str
) -> None:
    program = confinement.calls_filter(machine)
    word = confinement.MACHINES[machine]
    assert decided(program, number, arguments, word) == (0x7FFF0000 if expected == "allowed" else expected)
    assert decided(program, number, arguments, 0x40000003) == 0x80000000, "a 32-bit program's ends it"


@pytest.mark.parametrize("machine", [X86, ARM])
def test_the_filter_refuses_all_calls_that_it_names(machine: str) -> None:
    program, column = confinement.calls_filter(machine), [X86, ARM].index(machine)
    for name, numbers in confinement.REFUSED_CALLS.items():
        assert decided(program, numbers[column], (), confinement.MACHINES[machine]) == EPERM, name


def test_a_machine_whose_calls_are_not_known_is_refused() -> None:
    with pytest.raises(OSError, match="Linux on x86_64 and aarch64, this is linux on riscv64"):
        confinement.calls_filter("riscv64")
