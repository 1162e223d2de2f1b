"""The published scheme as a baseline: it computes the published numbers, and copies what it says."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.instruments.random_stacks import publish_random_stacks
from benchmarks.instruments.timing import timed
from benchmarks.peers import shuttle_baseline
from benchmarks.peers.shuttle_baseline import ShuttledDelta, ShuttleModel, ShuttleProjection, shuttle_stream
from benchmarks.serving.engine_batch import engine_batch
from brainstacks import ComposedModel
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import DomainNotFound
from brainstacks.stacks.legacy import import_reference
from brainstacks.stacks.registry import Registry

REFERENCE = Path(
    os.environ.get("BRAINSTACKS_REFERENCE_FIXTURE", Path(__file__).parents[2] / "fixtures" / "reference")
)
COMPOSITIONS: dict[str, dict[str, float]] = {
    "ungated": {"chat": 1.0, "code": 1.0, "math": 1.0},
    "mixed": {"chat": 0.85, "code": 0.02, "math": 0.91},
    "only_chat": {"chat": 1.0},
    "only_code": {"code": 1.0},
    "only_math": {"math": 1.0},
    "base": {},
}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(REFERENCE / "base", quantization="none", device="cpu")


@pytest.fixture(scope="module")
def registry(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("registry"), create=True)
    import_reference(REFERENCE, base.identity, registry, note=lambda _: None)
    return registry


@pytest.fixture
def shuttle(base: BaseModel, registry: Registry) -> Iterator[ShuttleModel]:
    model = ShuttleModel(base, registry)
    yield model
    model.restore()


def projections(base: BaseModel) -> list[ShuttleProjection]:
    return [m for m in base.model.modules() if isinstance(m, ShuttleProjection)]


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_baseline_gives_the_published_logits(shuttle: ShuttleModel, composition: str) -> None:
    expected = load_file(REFERENCE / "expected.safetensors")
    for k in range(5):
        for ids, logits in zip(
            expected[f"{k}.input_ids"], expected[f"{k}.logits.{composition}"], strict=True
        ):
            found = shuttle.logits(ids[None], COMPOSITIONS[composition])
            torch.testing.assert_close(found[0], logits, rtol=0, atol=2e-5)


def test_baseline_logits_equal_the_composed_model(tmp_path: Path, base: BaseModel) -> None:
    registry = Registry(tmp_path, create=True)
    names = publish_random_stacks(
        registry, base.identity, 3, rank=4, experts=3, top_k=2, rounds=2, dtype=torch.float32
    )
    weights = {names[0]: 0.7, names[1]: 0.1, names[2]: -0.5}  # the middle one is gated off
    ids = torch.randint(256, (1, 12), generator=torch.Generator().manual_seed(1))
    composed = ComposedModel.load(REFERENCE / "base", tmp_path, quantization="none", device="cpu")
    shuttle = ShuttleModel(base, registry)
    try:
        ours, theirs = composed.logits(ids, weights), shuttle.logits(ids, weights)
        without = shuttle.logits(ids, {})
    finally:
        shuttle.restore()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (theirs - without).abs().max() > 1e-3  # the stacks change what is compared


def test_baseline_generates_what_the_engine_generates(
    base: BaseModel, registry: Registry, shuttle: ShuttleModel
) -> None:
    served = load_base(REFERENCE / "base", quantization="none", device="cpu")
    engine = StepEngine(served, registry, EngineConfig())
    prompt, weights = (5, 17, 200, 31), COMPOSITIONS["mixed"]
    ours = timed(engine_batch(engine, [prompt], [weights]), 8)
    theirs = timed(shuttle_stream(shuttle, prompt, weights), 8)
    assert ours.tokens == theirs.tokens


def test_baseline_decodes_with_its_cache_what_it_computes_without(shuttle: ShuttleModel) -> None:
    weights = COMPOSITIONS["ungated"]
    ids = [5, 17, 200]
    for token in shuttle.generate(tuple(ids), weights, 4):
        assert token == int(shuttle.logits(torch.tensor([ids]), weights)[0, -1].argmax())
        ids.append(token)


@pytest.mark.parametrize("always_copy", [True, False])
def test_every_forward_copies_every_active_stack_and_no_other(
    base: BaseModel, shuttle: ShuttleModel, monkeypatch: pytest.MonkeyPatch, always_copy: bool
) -> None:
    def addresses(domain: str) -> list[int]:
        return [
            p.data_ptr()
            for projection in projections(base)
            for delta in projection.stacks[domain]
            for p in delta.parameters()
        ]

    stays = torch.Tensor.to
    copies: list[int] = []

    def counted(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if kwargs.get("copy"):
            copies.append(tensor.data_ptr())
        return stays(tensor, *args, **kwargs)  # type: ignore[call-overload,no-any-return]

    list(shuttle.generate((1, 2), {"chat": 1.0, "code": 0.5}, 1))
    monkeypatch.setattr(torch.Tensor, "to", counted)
    before = addresses("chat")
    list(shuttle.generate((1, 2), {"chat": 1.0, "code": 0.5}, 3, always_copy=always_copy))
    tensors = len(before) + len(addresses("code"))
    # 3 tokens are 3 forwards; each takes every tensor to the device and back.
    assert len(copies) == (3 * 2 * tensors if always_copy else 0)


def test_all_experts_are_computed_and_the_gate_keeps_top_k() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3, generator=generator)
    A = [torch.randn(2, 3, generator=generator) for _ in range(3)]
    B = [torch.randn(4, 2, generator=generator) for _ in range(3)]
    gate = torch.randn(3, 3, generator=generator)
    found = ShuttledDelta(A, B, gate, top_k=2, scaling=0.5)(x)
    for t in range(2):
        logits = gate @ x[0, t]
        kept = logits.argsort(descending=True)[:2].tolist()
        total = sum(float(logits[e].exp()) for e in kept)
        expected = sum(float(logits[e].exp()) / total * 0.5 * (B[e] @ (A[e] @ x[0, t])) for e in kept)
        torch.testing.assert_close(found[0, t], expected)


def test_stacks_that_the_route_does_not_need_are_dropped(base: BaseModel, shuttle: ShuttleModel) -> None:
    ids = torch.tensor([[1, 2, 3]])
    fresh = shuttle.logits(ids, {"math": 0.9})
    shuttle.logits(ids, {"chat": 1.0, "code": 1.0})
    assert all(set(projection.stacks) == {"chat", "code"} for projection in projections(base))
    assert torch.equal(shuttle.logits(ids, {"math": 0.9}), fresh)


def test_restore_leaves_the_base_as_it_was(base: BaseModel, registry: Registry) -> None:
    before = {name: id(module) for name, module in base.model.named_modules()}
    shuttle = ShuttleModel(base, registry)
    assert len(projections(base)) == len(base.sites)
    shuttle.restore()
    assert {name: id(module) for name, module in base.model.named_modules()} == before


def test_an_unknown_domain_is_refused_by_name(shuttle: ShuttleModel) -> None:
    with pytest.raises(DomainNotFound, match=r"'law'.*chat, code, math"):
        shuttle.logits(torch.tensor([[1]]), {"law": 1.0})


def test_baseline_shares_no_code_with_the_layers_or_the_engine() -> None:
    tree = ast.parse(Path(shuttle_baseline.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    ours = {name for name in imported if name.startswith("brainstacks")}
    assert ours == {
        "brainstacks.base_model",
        "brainstacks.errors",
        "brainstacks.stacks.artifact",
        "brainstacks.stacks.registry",
        "brainstacks.stacks.tensors",
    }
