"""One command brings a domain into a running server, with its records alone; and goes on where it was."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from brainstacks.base_model import BaseModel
from brainstacks.client import AdminClient, Client, ServerError
from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.errors import BrainstacksError
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from tests.served_registry import KEY, Listening
from tests.tiny import publish_stack, random_stack, save_base, write_records, write_router, write_stack
from tests.training.curricula import recipe
from training.__main__ import app
from training.recipe.recipe import RECIPES

API_KEY = "0123456789abcdef"
Change = Callable[..., Path]


@pytest.fixture
def serving(registry: Registry, tiny_directory: Path, tmp_path: Path) -> Iterator[Listening]:
    """The tiny base over `registry`, as the test has filled it."""
    root = tmp_path / "registry"
    engine = AsyncEngine.open(base=tiny_directory, registry=root, quantization="none", dtype="float32")
    served = Listening(engine, api_key=(SecretStr(API_KEY),))
    yield served
    served.stop()


@pytest.fixture
def plan(tiny_directory: Path, tmp_path: Path) -> Change:
    """Writes a recipe for the tiny base, with these changes; its path."""

    def written(**changes: Any) -> Path:
        document = dataclasses.asdict(recipe(tiny_directory, "chat", steps=4))
        document["data"] |= {"selection": 5, "validation": 6}
        document["router"]["floors"] = {}
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(_plain(document | changes)))
        return path

    return written


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def add(
    serving: Listening, plan: Path, data: Path, run: Path, *more: str, name: str = "digits", **keys: str
) -> Result:
    arguments = [
        "add", name, "--data", str(data), "--server", serving.url, "--recipe", str(plan), "--run", str(run),
        *more,
    ]  # fmt: skip
    keys = {"BRAINSTACKS_ADMIN_KEY": KEY, "BRAINSTACKS_API_KEY": API_KEY, **keys}
    return CliRunner().invoke(app, arguments, env={**keys, "NO_PROXY": "127.0.0.1", "COLUMNS": "200"})


def routes(serving: Listening, asked: list[str]) -> list[dict[str, Any]]:
    with Client(serving.url, API_KEY) as client:
        return [client.route(messages=[{"role": "user", "content": prompt}]) for prompt in asked]


def prompts(count: int, letters: str = "0123456789", length: int = 24, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(letters, k=length + chance.randint(0, 6))) for _ in range(count)]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A file of questions in digits, all with one answer."""
    return write_records(tmp_path / "digits.jsonl", [(prompt, "12345678") for prompt in prompts(36)])


@pytest.fixture
def served_router(registry: Registry, tiny_base: BaseModel, tmp_path: Path) -> None:
    """The registry has a domain, and a router that reads little of a prompt."""
    publish_stack(registry, tiny_base.identity, "chat", random_stack(tiny_base.identity.dims, 3), tmp_path)
    path = tmp_path / "router.safetensors"
    registry.publish_router(write_router(path, registry, tiny_base.identity, sequence_length=64))


def test_a_domain_is_trained_signed_uploaded_and_its_signature_knows_its_prompts(
    serving: Listening, plan: Change, records: Path, tmp_path: Path, registry: Registry, tiny_base: BaseModel
) -> None:
    run = tmp_path / "run"
    result = add(serving, plan(), records, run)
    assert result.exit_code == 0, result.output
    history = registry.reload().domain("digits")
    metadata = read_stack_metadata(registry.blob_path(history.current.digest))
    assert metadata.signature is not None
    assert metadata.signature.prompts > 8
    assert f"digits: version 1 on {serving.url}" in result.output
    assert "of 6 prompts that were held out, decided by signature; mean weight" in result.output

    own, others = routes(serving, prompts(20, seed=1)), routes(serving, prompts(20, "ABCDEFGHIJKL", seed=2))
    assert {route["routed_by"]["digits"] for route in own + others} == {"signature"}
    assert sum("digits" in route["active"] for route in own) >= 16
    assert sum("digits" in route["active"] for route in others) <= 2

    other = random_stack(tiny_base.identity.dims, 1)
    file = write_stack(tmp_path / "other.safetensors", tiny_base.identity, "digits", other)
    with AdminClient(serving.url, KEY) as admin:
        admin.push(file, "digits", None, lambda moved: None)
    again = add(serving, plan(), records, run)
    assert "digits: finished before" in again.output
    assert "digits: version 1 on" in again.output
    history = registry.reload().domain("digits")
    assert (history.active, len(history.versions)) == (2, 2), "who serves another version keeps it"
    assert again.exit_code == 1
    assert isinstance(again.exception, ServerError)
    assert str(again.exception).startswith("digits: no router in force was trained with it, and its file")


def test_what_would_be_in_vain_is_not_trained(
    served_router: None, serving: Listening, plan: Change, records: Path, tmp_path: Path
) -> None:
    few = write_records(tmp_path / "few.jsonl", [(prompt, "yes") for prompt in prompts(5) * 6])
    wide = tmp_path / "wide.jsonl"
    wide.write_text(records.read_text(), encoding="utf-16")
    other, short = save_base(tmp_path / "other", seed=1), {"router": {"sequence_length": 64}}

    def refused(why: str, plan: Path, data: Path = records, **how: str) -> None:
        result = add(serving, plan, data, tmp_path, **how)
        assert result.exit_code == 1
        assert isinstance(result.exception, BrainstacksError)
        assert why in str(result.exception)

    refused("BRAINSTACKS_ADMIN_KEY", plan(**short), BRAINSTACKS_ADMIN_KEY="wrong")
    refused("BRAINSTACKS_API_KEY", plan(**short), BRAINSTACKS_API_KEY="wrong")
    refused("give a recipe with the server's base", plan(base=str(other), **short))
    refused("give a recipe with quantization: none", plan(quantization="nf4", **short))
    refused("Set router.sequence_length: 64 in the recipe", plan())
    refused("different training prompts fit", plan(**short), few)
    refused("no JSON object", plan(**short), wide)
    refused("brainstacks-train stack, then brainstacks push", plan(**short), name="chat")
    assert not (tmp_path / "training").exists()


def test_only_what_training_takes_is_asked_for_and_a_refused_route_is_a_line(
    serving: Listening, plan: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(prompt, "12345678") for prompt in (*prompts(24), *prompts(12, length=100, seed=1))]
    asked: list[str] = []

    def route(self: Client, **prompt: Any) -> dict[str, Any]:
        asked.append(prompt["prompt"] if "prompt" in prompt else prompt["messages"][0]["content"])
        if len(asked) == 3:
            raise ServerError("not now")
        return real(self, **prompt)

    real = Client.route
    monkeypatch.setattr(Client, "route", route)
    result = add(serving, plan(), write_records(tmp_path / "rows.jsonl", rows), tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert 3 < len(asked) < 1 + 6
    assert max(map(len, asked)) < 100
    assert f"digits: 1 of {len(asked) - 1} prompts got no route: not now" in result.output
    assert f"of {len(asked) - 2} prompts that were held out" in result.output


def test_on_top_of_a_registry_the_shipped_recipe_trains_with_all_of_its_stacks(
    tiny_directory: Path, tiny_base: BaseModel, serving: Listening, records: Path, tmp_path: Path
) -> None:
    shipped = yaml.safe_load((RECIPES / "add.yaml").read_text(encoding="utf-8"))
    tiny = {"base": str(tiny_directory), "quantization": "none", "min_gain": 0}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(shipped | tiny))
    earlier, dims = Registry(tmp_path / "earlier", create=True), tiny_base.identity.dims
    publish_stack(earlier, tiny_base.identity, "chat", random_stack(dims, 3, size=0.1), tmp_path)
    on_top = ("--registry", str(tmp_path / "earlier"))
    result = add(serving, tmp_path / "plan.yaml", records, tmp_path / "run", *on_top)
    assert result.exit_code == 0, result.output
    path = earlier.blob_path(earlier.reload().domain("digits").current.digest)
    metadata = read_stack_metadata(path)
    assert metadata.hyperparameters["earlier_stacks"] == "all"
    assert [one.domain for one in metadata.predecessors] == ["chat"]
