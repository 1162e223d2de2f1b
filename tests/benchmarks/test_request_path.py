"""The way of a request is as short as it was measured to be, and the tool that counts it sees it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from benchmarks import request_path, seeded_tokens
from brainstacks.base_model import identify_base
from brainstacks.engine.async_engine import AsyncEngine
from server.app import create_app
from server.settings import Settings
from tests.benchmarks.trained import trained_registry


def test_a_chat_request_passes_few_functions_and_those_that_it_must(
    tiny_directory: Path, tmp_path: Path
) -> None:
    registry = str(tmp_path / "trained")
    trained_registry(tmp_path, identify_base(tiny_directory))
    body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "stream": True}
    forth, back = request_path.ways(
        lambda: AsyncEngine.open(base=tiny_directory, registry=registry, quantization="none", device="cpu"),
        lambda engine: create_app(engine, Settings(registry=registry)),
        body | {"model": identify_base(tiny_directory).id, "ignore_eos": True},
    )
    assert forth[-1].endswith("CpuBackend.run")
    assert any(name.endswith("Scheduler.add") for name in forth)
    assert any(name.endswith("EventStream._send_all") for name in back)
    assert len(forth) <= 19
    assert len(back) <= 10


def test_seeded_tokens_are_the_same_each_time(tiny_directory: Path, tmp_path: Path) -> None:
    trained_registry(tmp_path, identify_base(tiny_directory))
    found = []
    for name in ("one", "two"):
        arguments = [str(tmp_path / name), "--requests", "13", "--base", str(tiny_directory)]
        arguments += ["--quantization", "none", "--registry", str(tmp_path / "trained")]
        result = CliRunner().invoke(seeded_tokens.app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / name).read_text()))
    assert found[0] == found[1]
    assert len(found[0]) == 13 + 2
