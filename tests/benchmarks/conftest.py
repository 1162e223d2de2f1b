"""Fixtures of the benchmarks' tests: commands on the tiny base, and experiments with data to learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.settings import Settings
from brainstacks.base_model import identify_base
from tests.benchmarks.commands import BENCHMARKS
from tests.benchmarks.experimenting import settings_of
from tests.benchmarks.trained import trained_registry
from tests.tiny import write_records
from training.runs.signals import StopRequest


@pytest.fixture
def run(tiny_directory: Path, tmp_path: Path) -> Any:
    """Runs a benchmark on the tiny base; gives its document and what it printed."""

    def command(name: str, *arguments: str, registry: bool = False) -> tuple[Any, str]:
        flags = ["--base", str(tiny_directory)]
        if name != "step_profile":  # whose device is the CPU
            flags += ["--device", "cpu"]
        if name != "nll":  # whose variants say
            flags += ["--quantization", "none"]
        flags += ["--output", str(tmp_path / "results")]
        if registry:
            trained_registry(tmp_path, identify_base(tiny_directory))
            flags += ["--registry", str(tmp_path / "trained")]
        result = CliRunner().invoke(BENCHMARKS[name], [*flags, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        (path,) = (tmp_path / "results").glob(f"{name}-*.json")
        for file in (path, path.with_suffix(".md")):
            assert str(tmp_path) not in file.read_text()
            assert str(tiny_directory) not in file.read_text()
        return json.loads(path.read_text()), result.output

    return command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, each with one answer to learn."""
    directory = tmp_path_factory.mktemp("data")
    for domain, answer in (("chat", "yes it is"), ("math", "it is four")):
        for split, count in (("train", 40), ("validation", 4)):
            rows = [(f"{domain} {split} {i}", f"{answer} {i % 2}") for i in range(count)]
            write_records(directory / domain / f"{split}.jsonl", rows)
    return directory


@pytest.fixture
def settings(tiny_directory: Path) -> Settings:
    return settings_of(tiny_directory)


@pytest.fixture
def materials(settings: Settings, data: Path, tmp_path: Path) -> Materials:
    return Materials(settings, data, tmp_path / "kept", StopRequest())


@pytest.fixture
def lab(materials: Materials, tmp_path: Path) -> Laboratory:
    return Laboratory(materials, tmp_path / "kept", report=lambda line: None)
