"""`brainstacks` against a server: a real one on a real socket, over a registry without an engine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from brainstacks.client import AdminClient, ServerError
from brainstacks.engine.facts import Readiness
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.manifest import Version
from brainstacks.stacks.registry import Registry
from tests.console_script import Script
from tests.served_registry import KEY, Serving
from tests.stacks.files import write_router, write_stack


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Script:
    """With the admin key in its environment, in a directory of its own."""
    monkeypatch.setenv("BRAINSTACKS_ADMIN_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Script(monkeypatch, capsys)


@pytest.fixture
def serving(registry: Registry, tmp_path: Path) -> Iterator[Serving]:
    """Two versions of `chat` and a router that knows the second."""
    registry.publish(write_stack(tmp_path / "chat-0"))
    digest = registry.publish(write_stack(tmp_path / "chat-1", seed=1)).digest
    registry.publish_router(write_router(tmp_path / "router-0", {"chat": digest}))
    each = Serving(registry)
    yield each
    each.stop()


def test_push_publishes_a_stack_and_says_that_the_router_does_not_know_it(
    script: Script, serving: Serving, tmp_path: Path
) -> None:
    law = write_stack(tmp_path / "law", "law")
    assert script("push", law, "--server", serving.url) == 0
    assert script.out == f"law version 1 published, generation 4, sha256 {sha256_file(law)}\n"
    assert script.err.startswith("note: law version 1: no router in force was trained with it")
    assert serving.registry.snapshot().domain("law").current.digest == sha256_file(law)
    code, again = script.json("push", law, "--server", serving.url)
    assert (code, again["created"], again["not_routed"]) == (0, False, ["law"])


def test_push_publishes_a_router_and_names_what_it_does_not_route_to(
    script: Script, serving: Serving, tmp_path: Path
) -> None:
    router = write_router(tmp_path / "router-1", {"chat": sha256_file(tmp_path / "chat-1")}, seed=1)
    assert script("push", router, "--server", serving.url) == 0
    assert (script.out.split(",")[0], script.err) == ("router version 2 published", "")
    stale = write_router(tmp_path / "router-2", {"chat": sha256_file(tmp_path / "chat-0")})
    assert script("push", stale, "--server", serving.url) == 0
    assert script.err.startswith("note: chat version 2: no router in force was trained with it")


def test_push_refuses_a_stale_generation_in_the_servers_words(
    script: Script, serving: Serving, tmp_path: Path
) -> None:
    arguments = ("push", write_stack(tmp_path / "law", "law"), "--server", serving.url, "--expect")
    assert script(*arguments, 2) == 1
    assert (script.out, script.err.count("\n")) == ("", 1)
    assert script.err.startswith("error: the registry is at generation 3, not 2; look at what changed")
    assert script(*arguments, 3) == 0


def test_a_file_that_is_too_large_or_unsound_is_refused_in_one_line(
    script: Script, serving: Serving, tmp_path: Path
) -> None:
    large = write_stack(tmp_path / "law", "law", rounds=60)
    assert script("push", large, "--server", serving.url) == 1
    assert "--max-upload-bytes" in script.err
    large.write_bytes(large.read_bytes()[:-1])
    assert script("push", large, "--server", serving.url) == 1
    assert script.err.startswith("error: the tensors need")
    assert serving.registry.generation == 3


def test_a_refusal_is_heard_though_most_of_the_file_was_not_sent_yet(
    serving: Serving, tmp_path: Path
) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(50 << 20)
    with AdminClient(serving.url, KEY) as client, pytest.raises(ServerError) as refused:
        client.push(tmp_path / "large", "law", None, lambda moved: None)
    assert refused.value.code == "body_too_large"


def test_pull_brings_the_active_version_or_another_and_the_router(
    script: Script, serving: Serving, tmp_path: Path
) -> None:
    assert script("pull", "chat", "--server", serving.url) == 0
    assert Path("chat-2.safetensors").read_bytes() == (tmp_path / "chat-1").read_bytes()
    assert script.out.startswith("chat version 2 is in chat-2.safetensors, sha256 ")
    code, pulled = script.json("pull", "chat", "--version", 1, "--output", "old", "--server", serving.url)
    assert (code, pulled["version"], pulled["digest"]) == (0, 1, sha256_file(Path("old")))
    assert script("pull", "--router", "--server", serving.url) == 0
    assert Path("router-1.safetensors").read_bytes() == (tmp_path / "router-0").read_bytes()
    assert script("pull", "chat", "--version", 7, "--server", serving.url) == 1
    assert script.err == "error: there is no version 7; there are 1, 2\n"


def test_pull_never_replaces_a_file(script: Script, serving: Serving) -> None:
    Path("chat-2.safetensors").write_text("mine")
    assert script("pull", "chat", "--server", serving.url) == 1
    assert script.err.startswith("error: chat-2.safetensors is there already; name another")
    assert Path("chat-2.safetensors").read_text() == "mine"


def test_pull_keeps_nothing_of_other_bytes_than_the_manifest_says(
    script: Script, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def changed(domain: str, number: int) -> tuple[Version, BinaryIO]:
        version = serving.registry.snapshot().domain(domain).version(number)
        return version, io.BytesIO(bytes(version.bytes))

    monkeypatch.setattr(serving.stacks, "file", changed)
    assert script("pull", "chat", "--server", serving.url) == 1
    assert "nothing was kept" in script.err
    assert os.listdir() == []


def test_pull_keeps_nothing_of_a_file_that_breaks_off(
    script: Script, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(domain: str, number: int) -> tuple[Version, BinaryIO]:
        version = serving.registry.snapshot().domain(domain).version(number)
        return version, io.BytesIO(bytes(10))

    monkeypatch.setattr(serving.stacks, "file", cut)
    assert script("pull", "chat", "--server", serving.url) == 1
    assert script.err.startswith(f"error: the exchange with {serving.url} broke off (")
    assert os.listdir() == []


def test_activate_rolls_a_stack_and_the_router_back_and_forward(
    script: Script, serving: Serving, tmp_path: Path
) -> None:
    serving.registry.publish_router(
        write_router(tmp_path / "router-1", {"chat": sha256_file(tmp_path / "chat-0")}, seed=1)
    )
    assert script("activate", "chat", "--version", 1, "--server", serving.url) == 0
    assert script.out == "chat version 1 serves, generation 5\n"
    code, document = script.json("activate", "--router", "--version", 1, "--server", serving.url)
    assert (code, document["name"], document["version"], document["generation"]) == (0, "router", 1, 6)
    assert script("activate", "chat", "--version", 2, "--expect", 5, "--server", serving.url) == 1
    assert script("activate", "chat", "--version", 9, "--server", serving.url) == 1
    assert script.err == "error: there is no version 9; there are 1, 2\n"
    now = serving.registry.snapshot()
    assert (now.domain("chat").active, now.routers().active) == (1, 1)


def test_pin_and_unpin_say_where_the_stack_is(script: Script, serving: Serving) -> None:
    assert script("pin", "chat", "--server", serving.url) == 0
    assert script.out == "chat version 2 is pinned, residency device\n"
    code, document = script.json("unpin", "chat", "--server", serving.url)
    assert (code, document["pinned"]) == (0, False)
    assert script("pin", "nobody", "--server", serving.url) == 1
    assert script.err.startswith("error: there is no domain 'nobody'")


def test_status_shows_all_and_its_exit_code_whether_something_is_wrong(
    script: Script, serving: Serving, tmp_path: Path
) -> None:
    serving.registry.publish(write_stack(tmp_path / "law", "law"))
    serving.stacks.sync()
    assert script("status", "--server", serving.url) == 0
    rows = [line.split("│")[1:-1] for line in script.out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[:6] for row in cells] == [
        ["chat", "2", "1, 2", "device", "", "yes"],
        ["law", "1", "1", "disk", "", "no"],
        ["(router)", "1", "1", "", "", ""],
    ]
    assert "generation 4" in script.out
    serving.engine.ready = Readiness(True, unrouted=("law: not \x1b[2J",))
    assert script("status", "--server", serving.url) == 0, "to leave one out is no fault"
    assert "note: law: not \\x1b[2J" in script.out
    serving.engine.ready = Readiness(True, ("law version 1: overflows \x1b[2J",))
    assert script("status", "--server", serving.url) == 1
    assert "problem: law version 1: overflows \\x1b[2J" in script.out
    assert script.err == f"error: {serving.url}: 1 problem\n"
    serving.engine.ready = Readiness(False, ("draining",))
    code, document = script.json("status", "--server", serving.url)
    assert (code, document["ready"], document["problems"]) == (1, False, ["draining"])
    assert document["registry"]["generation"] == 4
    assert [stack["domain"] for stack in document["stacks"]] == ["chat", "law"]
    assert script.err == f"error: {serving.url}: not ready\n"


def test_the_key_comes_from_a_file_or_the_environment_and_a_wrong_one_is_told_before_the_file_is_sent(
    script: Script, serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINSTACKS_ADMIN_KEY", "wrong")
    assert script("push", tmp_path / "chat-0", "--server", serving.url) == 1
    assert script.err.startswith("error: The key is not known")
    assert "BRAINSTACKS_ADMIN_KEY" in script.err
    assert serving.registry.snapshot().domain("chat").active == 2
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert script("status", "--server", serving.url, "--admin-key-file", file) == 0
    file.write_text(" \n")
    assert script("status", "--server", serving.url, "--admin-key-file", file) == 1
    assert script.err.startswith("error: ")
    assert "holds no key" in script.err


def test_without_a_key_or_a_terminal_to_ask_at_it_says_how_to_give_one(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "BRAINSTACKS_ADMIN_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", "brainstacks.cli", "status", "--server", "http://127.0.0.1:9"],
        cwd=Path(__file__).parents[1],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no admin key; set BRAINSTACKS_ADMIN_KEY, or name a file")


def test_the_key_is_no_argument(script: Script) -> None:
    """Arguments are in plain view of everyone on the machine."""
    for command in ("push", "pull", "activate", "pin", "unpin", "status"):
        assert script(command, "--help") == 0
        options = {word for word in script.out.split() if word.startswith("--")}
        assert "--admin-key-file" in options
        assert not options & {"--admin-key", "--key"}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", "http://", "http://host:x", ""])
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="give http://HOST:PORT"):
        AdminClient(url, KEY)


def test_a_server_that_is_not_there_is_one_line(script: Script, serving: Serving) -> None:
    serving.stop()
    assert script("status", "--server", serving.url) == 1
    assert (script.out, script.err.count("\n")) == ("", 1)
    assert script.err.startswith(f"error: nothing answers at {serving.url} (")


def test_a_server_of_another_kind_is_told_apart(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.stacks, "manifest", lambda: {"hello": 1})
    with AdminClient(serving.url, KEY) as client, pytest.raises(ServerError, match="is it a Brainstacks"):
        client.manifest()
    with AdminClient(f"{serving.url}/elsewhere", KEY) as client, pytest.raises(ServerError, match="no route"):
        client.stacks()


@pytest.mark.parametrize(
    "arguments",
    [
        ["push", "no-such-file"],
        ["pull"],
        ["pull", "chat", "--router"],
        ["activate", "chat"],
        ["activate", "--version", "1"],
        ["activate", "chat", "--version", "0"],
        ["pin"],
    ],
)
def test_wrong_usage_is_exit_code_2(script: Script, arguments: list[str]) -> None:
    assert script(*arguments, "--server", "http://127.0.0.1:9") == 2
    assert script.out == ""


def test_the_servers_address_can_come_from_the_environment(
    script: Script, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINSTACKS_SERVER", serving.url)
    code, document = script.json("status")
    assert (code, document["server"]) == (0, serving.url)
    assert json.dumps(document).count(KEY) == 0
