"""Imported artefacts compute what the published implementation computes with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from brainstacks import ComposedModel
from brainstacks.base_model import identify_base
from brainstacks.stacks.legacy import import_reference
from brainstacks.stacks.registry import Registry
from brainstacks.weights import Weights

REFERENCE = Path(
    os.environ.get("BRAINSTACKS_REFERENCE_FIXTURE", Path(__file__).parent / "fixtures" / "reference")
)
EXPECTED = load_file(REFERENCE / "expected.safetensors")
INPUTS = sorted({key.split(".")[0] for key in EXPECTED})
COMPOSITIONS: Mapping[str, Weights] = {
    "base": None,
    "routed": "routed",
    "ungated": "ungated",
    "mixed": {"chat": 0.85, "code": 0.02, "math": 0.91},
    "only_chat": {"chat": 1.0},
    "only_code": {"code": 1.0},
    "only_math": {"math": 1.0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ComposedModel:
    root = tmp_path_factory.mktemp("registry")
    base = REFERENCE / "base"
    import_reference(REFERENCE, identify_base(base), Registry(root), note=lambda _: None)
    return ComposedModel.load(base, root, quantization="none", device="cpu")


def difference(left: Tensor, right: Tensor) -> float:
    assert left.shape == right.shape
    return float((left - right).abs().max())


def test_every_expected_value_is_compared() -> None:
    compared = {f"logits.{name}" for name in COMPOSITIONS}
    compared |= {"input_ids", "router.features", "router.probabilities", "router.weights"}
    assert {key.split(".", 1)[1] for key in EXPECTED} == compared
    assert len(INPUTS) == 5


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("k", INPUTS)
def test_logits_equal_the_published_ones(model: ComposedModel, k: str, composition: str) -> None:
    logits = model.logits(EXPECTED[f"{k}.input_ids"], COMPOSITIONS[composition])
    assert logits.dtype == torch.float32
    assert difference(logits, EXPECTED[f"{k}.logits.{composition}"]) <= 1e-4


@pytest.mark.parametrize("k", INPUTS)
def test_the_router_equals_the_published_one(model: ComposedModel, k: str) -> None:
    ids = EXPECTED[f"{k}.input_ids"]
    assert difference(model.router_features(ids), EXPECTED[f"{k}.router.features"]) <= 1e-5
    route = model.route(ids)
    assert tuple(route.probabilities) == tuple(route.weights) == model.domains
    probabilities = EXPECTED[f"{k}.router.probabilities"].flatten()
    assert difference(torch.tensor(list(route.probabilities.values())), probabilities) <= 1e-5
    weights = EXPECTED[f"{k}.router.weights"].flatten()
    assert difference(torch.tensor(list(route.weights.values())), weights) <= 1e-5
    assert route.active == tuple(d for d, w in zip(model.domains, weights, strict=True) if w > 0.12)


def test_one_batch_with_a_composition_per_row_equals_the_published_rows(model: ComposedModel) -> None:
    ids = EXPECTED["0.input_ids"]
    names = ["only_math", "base", "mixed", "only_code"]
    rows = [COMPOSITIONS[name] or {} for name in names]
    logits = model.logits(ids.expand(len(rows), -1), rows)  # type: ignore[arg-type]
    for row, name in zip(logits, names, strict=True):
        assert difference(row[None], EXPECTED[f"0.logits.{name}"]) <= 1e-4
