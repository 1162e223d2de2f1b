"""The console script: what people read, what scripts parse, and the exit codes both rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.verify import verify
from tests.console_script import Script
from tests.stacks.files import write_router, write_stack
from tests.stacks.s3_server import S3Server

REFERENCE = Path(__file__).parent / "fixtures" / "reference"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(monkeypatch, capsys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A registry with two versions of `chat` and a router."""
    registry = Registry(tmp_path / "registry", create=True)
    digest = registry.publish(write_stack(tmp_path / "chat-0")).digest
    registry.publish(write_stack(tmp_path / "chat-1", seed=1))
    registry.publish_router(write_router(tmp_path / "router", {"chat": digest}))
    return tmp_path / "registry"


def flip_last_byte(root: Path, digest: str) -> None:
    blob = root / "blobs" / "sha256" / digest
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_list_shows_every_version_and_which_serves(script: Script, root: Path) -> None:
    assert script("list", "--registry", root) == 0
    rows = [line.split("│")[1:4] for line in script.out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["chat", "1", ""],
        ["chat", "2", "yes"],
        ["(router)", "1", "yes"],
    ]
    assert "generation 3" in script.out


def test_list_as_json_is_the_manifest(script: Script, root: Path) -> None:
    assert script.json("list", "--registry", root) == (0, json.loads((root / "manifest.json").read_text()))


def test_every_command_on_a_registry_takes_a_bucket_and_keeps_what_it_reads_where_it_is_told(
    script: Script, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINSTACKS_REGISTRY", s3.registry())
    monkeypatch.setenv("BRAINSTACKS_REGISTRY_CACHE", str(tmp_path / "cache"))
    assert script("publish", write_stack(tmp_path / "chat-0", licence="MIT")) == 0
    assert "chat version 1 published, generation 1" in script.out
    assert script.json("verify") == (0, {"versions": 1, "problems": []})
    assert script.json("list")[1]["generation"] == 1
    assert script("release", tmp_path / "release") == 0
    assert Registry(tmp_path / "release").generation == 1
    assert script.json("prune", "--keep", "0")[0] == 0
    assert len(list((tmp_path / "cache" / "blobs" / "sha256").iterdir())) == 1
    monkeypatch.setenv("BRAINSTACKS_REGISTRY", "s3://no-such-bucket/x")
    assert script("list") == 1
    assert "there is no such bucket" in script.err


def test_the_registry_can_come_from_the_environment(
    script: Script, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINSTACKS_REGISTRY", str(root))
    assert script("list") == 0


def test_inspect_shows_what_a_file_says(script: Script, root: Path, tmp_path: Path) -> None:
    code, document = script.json("inspect", tmp_path / "chat-0")
    assert code == 0
    assert (document["kind"], document["domain"], document["rounds"]) == ("stack", "chat", 2)
    assert document["digest"] == sha256_file(tmp_path / "chat-0")
    assert script("inspect", tmp_path / "router") == 0
    assert "router" in script.out


def test_what_a_file_says_is_printed_without_its_escape_codes(script: Script, tmp_path: Path) -> None:
    """Its author could otherwise write to the terminal of whoever looks: clear it, rename it, hide a line."""
    text = "safe\x1b[2J\x1b]0;owned\x07\x9b31mred\x7f\u202eback \u00e9\u6f22"
    path = write_stack(tmp_path / "x", description=text, licence=text, hyperparameters={"note": text})
    assert script("inspect", path) == 0
    assert r"safe\x1b[2J\x1b]0;owned\x07\x9b31mred\x7f\u202eback é漢" in script.out
    assert all(c.isprintable() or c == "\n" for c in script.out)
    assert script.json("inspect", path)[1]["description"] == text
    assert script("list", "--registry", tmp_path / "\x1b[2Jx") == 1
    assert "\x1b" not in script.err


def test_inspect_refuses_an_unsound_file_in_one_line(script: Script, tmp_path: Path) -> None:
    path = write_stack(tmp_path / "chat")
    path.write_bytes(path.read_bytes()[:-1])
    assert script("inspect", path) == 1
    assert (script.out, script.err.count("\n")) == ("", 1)
    assert script.err.startswith("error: the tensors need")


def test_publish_makes_a_registry_and_says_what_happened(script: Script, tmp_path: Path) -> None:
    path = write_stack(tmp_path / "chat")
    assert script("publish", path, "--registry", tmp_path / "new") == 0
    assert script.out.startswith("chat version 1 published, generation 1")
    code, (published,) = script.json("publish", path, "--registry", tmp_path / "new")
    assert (code, published["created"], published["generation"]) == (0, False, 1)


def test_publish_takes_routers_too(script: Script, root: Path, tmp_path: Path) -> None:
    file = write_router(tmp_path / "router-2", {"chat": "a" * 64}, seed=1)
    assert script("publish", file, "--registry", root) == 0
    assert script.out.startswith("router version 2 published")


def test_publish_refuses_a_stale_generation(script: Script, root: Path, tmp_path: Path) -> None:
    assert script("publish", tmp_path / "chat-0", "--registry", root, "--expect", 2) == 1
    assert script.err.startswith("error: the registry is at generation 3, not 2")


@pytest.mark.parametrize("file", ["chat-0", "router"])
def test_publish_refuses_a_file_of_another_base(
    script: Script, root: Path, tmp_path: Path, file: str
) -> None:
    assert script("publish", tmp_path / file, "--registry", root, "--base", REFERENCE / "base") == 1
    assert "fingerprint" in script.err
    assert Registry(root).generation == 3


def test_verify_tells_sound_from_damaged_by_its_exit_code(script: Script, root: Path, tmp_path: Path) -> None:
    assert script("verify", "--registry", root) == 0
    assert script.out == "3 versions, all sound\n"
    flip_last_byte(root, sha256_file(tmp_path / "chat-0"))
    code, report = script.json("verify", "--registry", root)
    assert (code, report["versions"]) == (1, 3)
    assert [(p["name"], p["version"]) for p in report["problems"]] == [("chat", 1)]
    assert script.err == "error: 1 of 3 versions cannot be served\n"
    assert script("verify", "--registry", root) == 1
    assert "do not match their digest" in " ".join(script.out.split())


def test_prune_frees_what_nothing_uses(script: Script, root: Path, tmp_path: Path) -> None:
    code, pruned = script.json("prune", "--registry", root, "--keep", 1)
    assert (code, pruned) == (0, {"versions": 1, "blobs": 1, "bytes": (tmp_path / "chat-0").stat().st_size})
    assert script("prune", "--registry", root) == 0
    assert script.out == "dropped 0 versions, deleted 0 files, freed 0.0 KiB\n"


def test_import_reference_publishes_everything_for_its_base(script: Script, tmp_path: Path) -> None:
    root = tmp_path / "imported"
    arguments = ("import-reference", REFERENCE, "--base", REFERENCE / "base", "--registry", root)
    assert script(*arguments) == 0
    assert [line.split()[0] for line in script.out.splitlines()] == ["chat", "code", "math", "router"]
    assert "note: meta_router.pt" in script.err
    assert verify(Registry(root)) == []
    code, published = script.json(*arguments)
    assert (code, [item["created"] for item in published]) == (0, [False] * 4)
    assert script(*arguments, "--rank", 8) == 1
    assert script.err.startswith("error: chat/stack_1.pt")


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["list"],
        ["publish", "--registry", "."],
        ["inspect", "no-such-file"],
        ["prune", "--keep", "-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(script: Script, arguments: list[str]) -> None:
    assert script(*arguments) == 2
    assert script.out == ""


def test_a_registry_that_is_not_there_is_refused(script: Script, tmp_path: Path) -> None:
    for command in ("list", "verify", "prune"):
        assert script(command, "--registry", tmp_path / "nowhere") == 1
        assert script.err.startswith("error: there is no registry directory")
    assert not (tmp_path / "nowhere").exists()


def test_a_fault_of_the_system_is_one_line(script: Script, root: Path) -> None:
    (root / "manifest.json").unlink()
    (root / "manifest.json").mkdir()
    assert script("list", "--registry", root) == 1
    assert script.err.startswith("error: ")
    assert script.err.count("\n") == 1


@pytest.mark.parametrize("command", ["", "list", "inspect", "verify", "publish", "import-reference", "prune"])
def test_every_command_has_help(script: Script, command: str) -> None:
    assert script(*command.split(), "--help") == 0
    assert "Usage" in script.out


def test_looking_at_a_registry_needs_no_torch() -> None:
    code = "import sys, brainstacks.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
