"""The sandbox ends what does not end, hides all that is outside, and believes no exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from brainstacks.errors import ConfigError
from tests.training.reinforce.sandboxes import SANDBOX
from training.reinforce import confinement
from training.reinforce.sandbox import Ran, Sandbox

pytestmark = pytest.mark.usefixtures("namespaces")


def ran(source: str, sandbox: Sandbox = SANDBOX) -> Ran:
    return sandbox.run({"answer": source})


def changed(old: str, new: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have the sandbox run a confinement that differs."""
    source = Path(confinement.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1
    program = tmp_path / "confinement.py"
    program.write_text(source.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(confinement, "__file__", str(program))


@pytest.fixture
def without_filter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed("        _refuse_calls(calls)\n", "", monkeypatch, tmp_path)


def test_code_passes_where_it_and_its_tests_come_to_their_ends() -> None:
    code = "def add(a, b):\n    return a + b\n"
    assert SANDBOX.passes(code, "assert add(1, 2) == 3")
    assert not SANDBOX.passes(code, "assert add(1, 2) == 4")
    assert not SANDBOX.passes("def add(a, b:", "assert True")
    assert SANDBOX.run({"answer": code, "tests": "assert add(1, 2) == 4, 'no sum'"}) == Ran(
        "failed", "tests: AssertionError: no sum\n"
    )


@pytest.mark.parametrize("leave", ["raise SystemExit(0)", "exit()", "import os; os._exit(0)"])
def test_an_answer_that_leaves_before_its_tests_does_not_pass(leave: str) -> None:
    assert not SANDBOX.passes(leave, "assert False")


def test_code_is_compiled_as_a_file_of_its_own_would_be() -> None:
    """Under the sandbox's own `from __future__ import annotations` no name in an annotation is missed."""
    code = "def f(x: List[int]) -> int:\n    return 1"
    assert not SANDBOX.passes(code, "assert f(1) == 1")
    assert SANDBOX.passes(f"from typing import List\n{code}", "assert f.__annotations__['return'] is int")


@pytest.mark.parametrize(
    "block", ["n = int(input())", "import unittest; unittest.main()", "raise SystemExit(main())"]
)
def test_an_answer_is_imported_so_its_main_block_is_not_run(block: str) -> None:
    code = f"def f():\n    return 1\nif __name__ == '__main__':\n    {block}"
    assert SANDBOX.passes(code, "assert f() == 1")
    assert not SANDBOX.passes(code, "assert f() == 2")


def test_the_tests_are_the_program_so_their_main_block_is_run() -> None:
    """Tests of which nothing is run would pass any answer."""
    tests = "if __name__ == '__main__':\n    assert f() == 1"
    assert SANDBOX.passes("def f():\n    return 1", tests)
    assert not SANDBOX.passes("def f():\n    return 2", tests)


def test_an_answer_has_a_module_that_is_none_of_the_sandboxs() -> None:
    code = (
        "import pickle\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: 'int'\n"
        "def double(x):\n    return 2 * x\n"
        "def copy(x):\n    return pickle.loads(pickle.dumps(x))\n"
    )
    tests = (
        "import __main__\nfrom multiprocessing import get_context\n"
        "assert __main__.Point is Point and Point.__module__ == 'answer'\n"
        "assert not hasattr(__main__, 'os') and not hasattr(__main__, '_libc')\n"
        "assert copy(Point(1)) == Point(1)\n"
        "class Own: pass\nassert type(copy(Own())) is Own\n"
        "with get_context('fork').Pool(2) as pool:\n    assert pool.map(double, [1, 2]) == [2, 4]\n"
    )
    assert SANDBOX.run({"answer": code, "tests": tests}) == Ran("passed", "")


def test_an_endless_loop_and_a_sleeper_that_shut_its_output_are_stopped_in_time() -> None:
    begin = time.monotonic()
    quick = Sandbox(seconds=0.5)
    assert ran("while True: pass", quick).ended == "time"
    silent = "import os, time\nos.close(1); os.close(2)\ntime.sleep(1000)"
    assert ran(silent, quick).ended == "time"
    assert time.monotonic() - begin < 20


def test_a_fork_bomb_is_refused_by_the_system_and_leaves_nothing() -> None:
    found = ran("import os\nwhile True:\n    os.fork()")
    assert found.ended == "failed"
    assert "BlockingIOError" in found.output


def test_processes_are_counted_for_each_run_alone() -> None:
    """A run that takes all that it may have leaves the others theirs."""
    many = (
        "import os, time\n"
        "for _ in range(12):\n    if os.fork() == 0:\n        time.sleep(0.5)\n        break\n"
        "else:\n    [os.wait() for _ in range(12)]"
    )
    with ThreadPoolExecutor(4) as pool:
        assert [found.ended for found in pool.map(ran, [many] * 4)] == ["passed"] * 4


def test_what_code_left_running_ends_with_it() -> None:
    name = f"orphan-{os.getpid()}"
    found = ran(
        "import ctypes, os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\n"  # PR_SET_NAME
        "    os.close(1); os.close(2)\n"
        "    time.sleep(1000)\n"
        "time.sleep(0.2)"
    )
    assert found.ended == "passed"
    names = subprocess.run(["ps", "-eo", "comm"], capture_output=True, text=True, check=True).stdout
    assert name[:15] not in names.split()


def test_memory_and_files_and_output_have_an_end() -> None:
    assert "MemoryError" in ran("bytearray(4 << 30)").output
    assert "File too large" in ran("open('big', 'wb').write(b'x' * (2 << 20))").output
    many = "for i in range(9):\n    open(str(i), 'wb').write(b'x' * (1 << 18))"
    assert "No space left" in ran(many).output
    found = ran("while True:\n    print('y' * 1000)")
    assert (found.ended, len(found.output)) == ("output", 4096)


def test_there_is_no_network_not_even_this_machine(without_filter: None) -> None:
    """By the namespaces alone; that the filter refuses sockets before is tested of `confinement`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = ran(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
    assert found.ended == "failed"
    assert "unreachable" in found.output


def test_a_service_that_listens_at_a_name_is_not_seen(without_filter: None) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0sandbox-{os.getpid()}")
        server.listen()
        found = ran(f"import socket\nsocket.socket(socket.AF_UNIX).connect('\\0sandbox-{os.getpid()}')")
    assert "refused" in found.output


def test_the_parents_environment_and_processes_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    found = ran(
        "import os, pathlib\n"
        "print(sorted(os.environ.keys() - {'LC_CTYPE'}))\n"  # which Python sets itself
        f"print(pathlib.Path('/proc/{os.getpid()}/environ').read_bytes())"
    )
    assert "hunter2" not in found.output
    assert "SECRET" not in found.output
    assert found.output.splitlines()[0] == "[]"
    assert "FileNotFoundError" in found.output


def test_no_process_outside_can_be_signalled() -> None:
    found = ran(f"import os\nos.kill({os.getpid()}, 9)")
    assert "ProcessLookupError" in found.output
    ran("import os\nos.kill(-1, 9)")
    assert not SANDBOX.passes("import os\nos.kill(os.getppid(), 9)\nos.killpg(0, 9)", "")


def test_files_outside_cannot_be_written_nor_made_writable_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    path = tmp_path / "mine"
    path.write_text("kept")
    path.chmod(0o666)
    remount = (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.unshare(0x10020000)\n"
        "libc.mount(None, b'/', None, 4128, None)\n"
        f"libc.mount(None, b'{tmp_path}', None, 4128, None)\n"
    )
    for before in ("", remount):
        assert ran(f"{before}open('{path}', 'w').write('lost')").ended == "failed"
        assert ran(f"{before}import os\nos.unlink('{path}')").ended == "failed"
    assert path.read_text() == "kept"
    assert ran("open('own', 'w').write('x')\nassert open('own').read() == 'x'").ended == "passed"
    assert ran("import os\nassert os.listdir() == []").ended == "passed", "nothing of a run before"


def test_code_has_the_standard_library_alone() -> None:
    assert ran("import collections, dataclasses, re, heapq").ended == "passed"
    assert "ModuleNotFoundError" in ran("import torch").output


@pytest.mark.parametrize(
    ("given", "refused", "says"),
    [
        ('_call("unshare", _NEWNS', '_call("unshare", 1', r"unshare: Invalid argument\).*user namespaces"),
        ('_call("prctl", _SECCOMP, 2', '_call("prctl", _SECCOMP, 9', r"prctl: Invalid argument\).*seccomp"),
        ("os.chroot(work)", "os.chroot(work + '/none')", r"/none: No such file or directory\)"),
        ("os.uname().machine", "'riscv64'", "this is linux on riscv64"),
    ],
)
def test_a_system_that_does_not_give_all_runs_nothing_and_says_what_to_allow(
    given: str, refused: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed(given, refused, monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match=rf"shut itself in \(.*{says}"):
        ran("print('ran')")


def test_a_python_whose_libraries_it_does_not_see_is_told_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed('f"{prefix}/{name}"', 'f"/none/{name}"', monkeypatch, tmp_path)
    if (problem := SANDBOX.problem()) is None:
        pytest.skip("this Python is the system's")
    assert "use a Python whose libraries are in its own directory or the system's" in problem


def test_a_machine_too_slow_or_small_for_a_line_of_python_is_told_before() -> None:
    with pytest.raises(ConfigError, match="cannot run a line of Python here"):
        Sandbox(seconds=0.001).check()
