"""The commands on PEFT's adapters and plain checkpoints: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brainstacks.stacks.artifact import read_stack_metadata, sha256_file
from tests.console_script import Script
from tests.stacks.adapters import configure, save_adapter
from tests.tiny import publish_stack, random_stack


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Script:
    monkeypatch.chdir(tmp_path)
    return Script(monkeypatch, capsys)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", target_modules=["q_proj", "v_proj"])


def test_an_adapter_comes_is_published_goes_and_is_merged(
    script: Script, adapter: Path, tiny_directory: Path, tmp_path: Path
) -> None:
    base = ("--base", tiny_directory)
    assert script("import-peft", adapter, "--domain", "math", *base) == 0
    assert (
        script.out == f"math is in math.safetensors, rank 3, sha256 {sha256_file(Path('math.safetensors'))}\n"
    )
    assert script.err.startswith("note: the adapter does not say what its base is")
    assert script("publish", "math.safetensors", "--registry", "registry", *base) == 0
    assert script("export-peft", "math.safetensors", "-o", "back", *base) == 0
    assert script.out == "math is in back, a LoRA of rank 3 for tiny-llama\n"
    again = script.json("import-peft", "back", "--domain", "math", "-o", "again", *base)
    assert again == (0, {"domain": "math", "file": "again", "digest": sha256_file(Path("again")),
                         "bytes": Path("again").stat().st_size})  # fmt: skip
    assert script.err == "", "it says its base, and that is the one"
    merge = ("merge", "--registry", "registry", *base, "--stacks")
    code, told = script.json(*merge, "math=0.5", "-o", "merged", "--dtype", "bfloat16")
    assert (code, told["weights"]) == (0, {"math": 0.5})
    assert json.loads(Path("merged", "config.json").read_text())["dtype"] == "bfloat16"
    assert Path("merged", "tokenizer.json").is_file()


def test_nothing_that_is_there_is_replaced(script: Script, adapter: Path, tiny_directory: Path) -> None:
    Path("math.safetensors").touch()
    base = ("--base", tiny_directory)
    commands: list[tuple[Any, ...]] = [
        ("import-peft", adapter, "--domain", "math"),
        ("export-peft", "math.safetensors", "-o", adapter),
        ("merge", "--registry", "registry", "--stacks", "math=1", "-o", adapter),
    ]
    for command in commands:
        assert script(*command, *base) == 1
        assert "is there already; name another with --output" in script.err
    assert Path("math.safetensors").read_bytes() == b""


def test_a_refusal_is_one_line_and_leaves_no_file(
    script: Script, adapter: Path, tiny_directory: Path
) -> None:
    configure(adapter, use_dora=True)
    assert script("import-peft", adapter, "--domain", "math", "--base", tiny_directory) == 1
    assert script.err.startswith("error: adapter_config.json has use_dora = True, which a stack cannot carry")
    assert script.err.count("\n") == 1
    assert script("import-peft", adapter, "--domain", "../x", "--base", tiny_directory) == 1
    assert [path.name for path in Path().iterdir()] == ["adapter"]


def test_gates_go_nowhere(script: Script, tiny_directory: Path, registry: Any, tmp_path: Path) -> None:
    from brainstacks.base_model import identify_base

    identity = identify_base(tiny_directory)
    publish_stack(registry, identity, "chat", random_stack(identity.dims, 1), tmp_path)
    for command in (
        ("export-peft", "chat.safetensors"),
        ("merge", "--registry", "registry", "--stacks", "chat=1.0"),
    ):
        assert script(*command, "-o", "out", "--base", tiny_directory) == 1
        assert "the stack of 'chat' has 3 experts" in script.err
    assert not Path("out").exists()


def test_a_stack_of_another_base_is_not_exported(
    script: Script, tiny_directory: Path, tmp_path: Path
) -> None:
    from tests.stacks.files import write_stack

    path = write_stack(tmp_path / "chat")
    assert read_stack_metadata(path).base.fingerprint == "f" * 64
    assert script("export-peft", path, "-o", "out", "--base", tiny_directory) == 1
    assert "fingerprint" in script.err


@pytest.mark.parametrize(
    ("stacks", "code", "said"),
    [
        ("math", 2, "'math' is no NAME=WEIGHT"),
        ("math=", 2, "'math=' is no NAME=WEIGHT"),
        ("math=x", 2, "'math=x' is no NAME=WEIGHT"),
        ("math=1,math=1", 2, "'math' is there twice"),
        ("math=0.12", 1, "the weight of 'math' is 0.12; its size is at most 2.0, and above 0.12"),
        ("", 1, "domain"),
    ],
)
def test_a_composition_that_no_request_could_ask_for_is_refused(
    script: Script, tiny_directory: Path, registry: Any, stacks: str, code: int, said: str
) -> None:
    arguments = ("--registry", "registry", "--base", tiny_directory, "--stacks", stacks, "-o", "out")
    assert script("merge", *arguments) == code
    assert said in script.err
    assert not Path("out").exists()


def test_an_unknown_dtype_is_refused(script: Script) -> None:
    arguments = ("--registry", "registry", "--stacks", "math=1", "-o", "out", "--dtype", "float8")
    assert script("merge", *arguments) == 1
    assert "float8" in script.err


@pytest.mark.parametrize("command", ["import-peft", "export-peft", "merge"])
def test_every_command_has_help(script: Script, command: str) -> None:
    assert script(command, "--help") == 0
    assert "Usage" in script.out
