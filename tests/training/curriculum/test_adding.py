"""One command brings a domain into a running server, with its records alone; and goes on where it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from brainstacks.base_model import identify_base
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from tests.served_registry import KEY, Serving
from tests.training.curricula import recipe
from training.__main__ import app


@pytest.fixture
def serving(registry: Registry, tiny_directory: Path) -> Iterator[Serving]:
    """An empty registry, on the tiny base."""
    served = Serving(registry)
    fingerprint = identify_base(tiny_directory).fingerprint
    served.engine.model = dataclasses.replace(served.engine.model, fingerprint=fingerprint)
    yield served
    served.stop()


@pytest.fixture
def plan(tiny_directory: Path, tmp_path: Path) -> Path:
    """A recipe for the tiny base, as a file."""
    document = dataclasses.asdict(recipe(tiny_directory, "chat", steps=4))
    document["data"] |= {"selection": 5, "validation": 6}
    document["router"]["floors"] = {}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(_plain(document)))
    return path


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def add(serving: Serving, plan: Path, data: Path, directory: Path, key: str = KEY, *more: str) -> Result:
    arguments = [
        "add", "digits", "--data", str(data / "math" / "train.jsonl"), "--server", serving.url,
        "--recipe", str(plan), "--run", str(directory / "run"), *more,
    ]  # fmt: skip
    environment = {"BRAINSTACKS_ADMIN_KEY": key, "NO_PROXY": "127.0.0.1", "COLUMNS": "200"}
    return CliRunner().invoke(app, arguments, env=environment)


def test_a_domain_is_trained_signed_uploaded_and_its_routes_told(
    serving: Serving, plan: Path, data: Path, tmp_path: Path
) -> None:
    result = add(serving, plan, data, tmp_path)
    assert result.exit_code == 0, result.output
    history = serving.registry.reload().domain("digits")
    metadata = read_stack_metadata(serving.registry.blob_path(history.current.digest))
    assert metadata.signature is not None
    assert metadata.signature.prompts > 8
    assert f"digits: version 1 on {serving.url}" in result.output
    assert "digits: applied to 5 of 5 prompts that were held out, decided by router" in result.output

    again = add(serving, plan, data, tmp_path)
    assert again.exit_code == 0, again.output
    assert "digits: finished before" in again.output
    assert len(serving.registry.reload().domain("digits").versions) == 1


def test_what_cannot_be_uploaded_is_not_trained(
    serving: Serving, plan: Path, data: Path, tmp_path: Path
) -> None:
    refused = add(serving, plan, data, tmp_path, "wrong")
    assert refused.exit_code == 1
    assert "BRAINSTACKS_ADMIN_KEY" in str(refused.exception)
    serving.engine.model = dataclasses.replace(serving.engine.model, fingerprint="0" * 64)
    other = add(serving, plan, data, tmp_path)
    assert "give a recipe with the server's base" in str(other.exception)
    assert not (tmp_path / "run").exists()


def test_on_top_of_a_registry_the_stack_names_what_it_stands_on(
    serving: Serving, plan: Path, data: Path, tmp_path: Path
) -> None:
    assert add(serving, plan, data, tmp_path).exit_code == 0
    earlier = str(tmp_path / "run" / "registry")
    arguments = [
        "add", "letters", "--data", str(data / "chat" / "train.jsonl"), "--server", serving.url,
        "--recipe", str(plan), "--run", str(tmp_path / "next"), "--registry", earlier,
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments, env={"BRAINSTACKS_ADMIN_KEY": KEY, "NO_PROXY": "127.0.0.1"})
    assert result.exit_code == 0, result.output
    path = serving.registry.blob_path(serving.registry.reload().domain("letters").current.digest)
    assert [one.domain for one in read_stack_metadata(path).predecessors] == ["digits"]
