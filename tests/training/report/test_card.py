"""The card says what a registry's files say about themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainstacks.base_identity import BaseIdentity
from brainstacks.base_model import identify_base
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import DataSource, StackMetadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import save_stack
from tests.tiny import random_stack, write_router
from training.evaluation.downstream import Downstream
from training.evaluation.evaluation import MODES, Evaluation, RecordResult
from training.report.card import card, table

ROWS = {
    "chat": dict(zip(MODES, (4.0, 3.0, 2.0, 1.0), strict=True)),
    "math": dict(zip(MODES, (2.0, 2.0, 1.0, 1.0), strict=True)),
}


def publish(registry: Registry, base: BaseIdentity, domain: str, directory: Path, **facts: Any) -> None:
    stack = random_stack(base.dims, 0)
    metadata = StackMetadata(domain, 1, stack.config, base.dims, base.ref, **facts)
    save_stack(directory / f"{domain}.safetensors", metadata, stack.tensors)
    registry.publish(directory / f"{domain}.safetensors")


@pytest.fixture
def filled(registry: Registry, tiny_directory: Path, tmp_path: Path) -> Registry:
    """A stack with all that training writes, an imported one, one that says nothing, and a router."""
    base = identify_base(tiny_directory)
    publish(
        registry,
        base,
        "chat",
        tmp_path,
        data=(DataSource("chat/train.jsonl", "d" * 64, 28),),
        hyperparameters={"steps": 40, "splits": {"seed": 3, "selection": 8}},
        seed=3,
        losses=({"validation_before": 2.5}, {"validation_after": 1.25}),
        tool_versions={"torch": "2"},
        licence="CC0-1.0",
        description="Small talk",
    )
    losses = ({"before": 3.0, "after": 2.0},)
    publish(registry, base, "code", tmp_path, losses=losses, licence="MIT", description="Imported.")
    publish(registry, base, "math", tmp_path)
    registry.publish_router(write_router(tmp_path / "router.safetensors", registry, base))
    return registry


def test_the_card_tells_losses_data_settings_and_licence(filled: Registry) -> None:
    records = tuple(RecordResult("r", domain, 1, nats, {}) for domain, nats in ROWS.items())
    text = card(filled, Evaluation(records, *filled.snapshot().serving), {"math": "my own"})
    for said in (
        "2.500 -> 1.250",
        "CC0-1.0",
        "chat/train.jsonl (28 records",
        "splits (seed 3, selection 8), steps 40",
        "\nSmall talk.\n",
        "\nImported.\n",
    ):
        assert said in text
    assert f"- digest `{filled.snapshot().domain('chat').current.digest}`" in text
    assert "## Meta-router" in text
    assert "| chat | 4.000 | 3.000 | 2.000 | 1.000 |" in text


@pytest.mark.parametrize("other", ["stacks", "router"])
def test_figures_of_other_stacks_or_another_router_are_refused(filled: Registry, other: str) -> None:
    stacks, router = filled.snapshot().serving
    served = ({"chat": "1" * 64}, router) if other == "stacks" else (stacks, "1" * 64)
    with pytest.raises(ConfigError, match=r"benchmarks\.downstream.*of other stacks, or another router"):
        card(filled, downstream=Downstream(*served, (), {}))
    with pytest.raises(ConfigError, match=r"brainstacks-train evaluate.*of other stacks, or another router"):
        card(filled, Evaluation((), *served))


@pytest.mark.parametrize(("domain", "losses"), [("code", "3.000 -> 2.000"), ("math", "-")])
def test_imported_stacks_have_a_row_too(filled: Registry, domain: str, losses: str) -> None:
    (row,) = [
        line
        for line in card(filled, None, {"math": "my own"}).splitlines()
        if line.startswith(f"| {domain} |")
    ]
    assert row.split(" | ")[3] == losses
    assert "Answer NLL" not in card(filled, None, {"math": "my own"})


def test_the_table_ends_with_the_mean_over_domains() -> None:
    records = tuple(RecordResult("r", domain, 1, nats, {}) for domain, nats in ROWS.items())
    assert table(Evaluation(records, {}, None))[-1] == "| **mean** | 3.000 | 2.500 | 1.500 | 1.000 |"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, r"the files of math have none; add --licence 'math=\.\.\.'"),
        ({"chat": "MIT", "math": "MIT"}, "a licence of chat is given, and its file says CC0-1.0"),
        ({"law": "MIT"}, "a licence of law is given, and the registry has no such stack"),
    ],
)
def test_a_card_has_one_licence_of_every_stack(filled: Registry, given: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        card(filled, None, given)
    assert "| my own |" in card(filled, None, {"math": "my own"})
