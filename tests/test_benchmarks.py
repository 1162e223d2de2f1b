"""The benchmarks compare like with like: a baseline that computes the published numbers, timed in turn."""

from __future__ import annotations

import ast
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import benchmarks.shuttle_baseline
from benchmarks import decode_vs_shuttle
from benchmarks.common import (
    Contestant,
    OnToken,
    Run,
    Spread,
    common_prefix,
    interleave,
    machine,
    markdown_table,
    ratios,
    timed,
    write_results,
)
from benchmarks.random_stacks import publish_random_stacks
from benchmarks.shuttle_baseline import ShuttledDelta, ShuttleModel, ShuttleProjection
from brainstacks import ComposedModel
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import DomainNotFound
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.legacy import import_reference
from brainstacks.stacks.registry import Registry

REFERENCE = Path(
    os.environ.get("BRAINSTACKS_REFERENCE_FIXTURE", Path(__file__).parent / "fixtures" / "reference")
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


# --- the baseline ----------------------------------------------------------------------------------


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
    ours = timed(decode_vs_shuttle.engine_stream(engine, prompt, weights), 8)
    theirs = timed(decode_vs_shuttle.shuttle_stream(shuttle, prompt, weights, always_copy=True), 8)
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
    tree = ast.parse(Path(benchmarks.shuttle_baseline.__file__).read_text())
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


# --- random stacks ---------------------------------------------------------------------------------


def test_random_stacks_are_sound_distinct_and_the_same_every_time(tmp_path: Path, base: BaseModel) -> None:
    digests = []
    for directory in (tmp_path / "a", tmp_path / "b"):
        registry = Registry(directory, create=True)
        names = publish_random_stacks(registry, base.identity, 2, rank=2)
        assert tuple(registry.snapshot().domains) == names
        assert registry.verify() == []
        digests.append([history.current.digest for history in registry.snapshot().domains.values()])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2
    assert read_stack_metadata(registry.blob_path(digests[0][0])).config.rank == 2


# --- the runner ------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when a contestant says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, log: list[str], seconds: float, prefill: float = 0.0) -> Contestant:
        def generate(tokens: int, on_token: OnToken) -> None:
            log.append(f"{name}{tokens}")
            self.now += prefill
            for token in range(tokens):
                self.now += seconds
                on_token(token)

        return generate


def test_contestants_take_turns_after_a_short_uncounted_round() -> None:
    clock = Clock()
    log: list[str] = []
    lines: list[str] = []
    contestants = {"A": clock.contestant("A", log, 0.5), "B": clock.contestant("B", log, 2.0)}
    runs = interleave(contestants, 2, 5, clock=clock, report=lines.append)
    assert log == ["A2", "B2", "A5", "B5", "A5", "B5"]
    assert [len(done) for done in runs.values()] == [2, 2]
    assert len(lines) == 2
    assert ratios(runs["A"], runs["B"]) == Spread(4.0, 4.0, 4.0, (4.0, 4.0))


def test_decode_rate_leaves_the_prefill_out() -> None:
    clock = Clock()
    run = timed(clock.contestant("A", [], 0.25, prefill=7.0), 5, clock)
    assert run.rate == 4.0
    assert run.first_token_s == 7.25


def test_a_run_with_another_number_of_tokens_is_refused() -> None:
    def stops_early(tokens: int, on_token: OnToken) -> None:
        on_token(1)

    with pytest.raises(RuntimeError, match="1 tokens were generated and 4 were asked for"):
        timed(stops_early, 4)


def test_ratios_are_taken_round_by_round() -> None:
    ours = [Run((1, 2), 0.0, 1.0), Run((1, 2), 0.0, 4.0), Run((1, 2), 0.0, 1.0)]
    theirs = [Run((1, 2), 0.0, 2.0), Run((1, 2), 0.0, 40.0), Run((1, 2), 0.0, 9.0)]
    assert ratios(ours, theirs) == Spread(9.0, 2.0, 10.0, (2.0, 10.0, 9.0))


@pytest.mark.parametrize(
    ("theirs", "agreed"), [((1, 2, 3), 3), ((1, 2, 4), 2), ((9, 2, 3), 0), ((1, 2), 2), ((), 0)]
)
def test_common_prefix_counts_until_the_first_difference(theirs: tuple[int, ...], agreed: int) -> None:
    assert common_prefix(Run((1, 2, 3), 0.0, 1.0), Run(theirs, 0.0, 1.0)) == agreed


def test_tables_align() -> None:
    lines = markdown_table(["a", "long header"], [["wide cell", 1.5], ["x", "y"]]).splitlines()
    assert lines[1] == "| --------- | ----------- |"
    assert len({len(line) for line in lines}) == 1


def test_machine_is_described_without_naming_the_host(tmp_path: Path) -> None:
    document: dict[str, Any] = {"machine": machine(), "spread": Spread.of([1.0, 3.0, 2.0])}
    path = write_results("name", document, "| table |", tmp_path)
    assert path.name == f"name-{document['machine']['kind']}.json"
    assert json.loads(path.read_text())["spread"] == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "rounds": [1.0, 3.0, 2.0],
    }
    assert set(document["machine"]) == {
        *("kind", "cpu", "cores", "torch_threads", "load_1min", "gpu", "date", "versions")
    }
    assert platform.node() not in document["machine"].values()
    for written in tmp_path.iterdir():
        assert str(tmp_path) not in written.read_text()
    assert "| table |" in path.with_suffix(".md").read_text()


# --- the benchmark itself --------------------------------------------------------------------------


def benchmark(tmp_path: Path, registry: Path, *options: str) -> tuple[int, str]:
    common = ["--base", str(REFERENCE / "base"), "--quantization", "none", "--device", "cpu"]
    small = ["--rounds", "2", "--tokens", "4", "--prompt-tokens", "3"]
    where = ["--registry", str(registry), "--output", str(tmp_path / "results")]
    result = CliRunner().invoke(
        decode_vs_shuttle.app, [*common, *small, *where, *options], catch_exceptions=False
    )
    return result.exit_code, result.output


def test_decode_vs_shuttle_reports_every_contestant(tmp_path: Path, base: BaseModel) -> None:
    trained = Registry(tmp_path / "trained", create=True)
    publish_random_stacks(trained, base.identity, 5, rank=2)
    code, output = benchmark(tmp_path, tmp_path / "trained")
    assert code == 0
    (path,) = (tmp_path / "results").glob("decode_vs_shuttle-*.json")
    assert str(tmp_path) not in path.read_text()
    cases = {case["name"]: case for case in json.loads(path.read_text())["cases"]}
    assert {name: list(case["contestants"]) for name, case in cases.items()} == {
        "base only": ["engine", "transformers generate"],
        decode_vs_shuttle.RANDOM_CASE: ["engine, apart", "engine, adjacent", "shuttle", "shuttle, no copies"],
        "4 of 5 trained stacks": ["engine", "shuttle", "shuttle, no copies"],
    }
    for name, case in cases.items():
        assert name in output
        for measured in case["contestants"].values():
            assert len(measured["tokens_per_second"]["rounds"]) == 2
            assert measured["tokens_per_second"]["min"] > 0
    # In float32 both sides choose the same tokens where they run the same composition.
    assert cases["base only"]["same_tokens"] == {"engine / transformers generate": 4}
    assert cases[decode_vs_shuttle.RANDOM_CASE]["same_tokens"]["engine, apart / shuttle"] == 4
    assert cases["4 of 5 trained stacks"]["same_tokens"] == {"engine / shuttle": 4}


def test_a_ratio_below_the_required_one_fails_and_is_named(tmp_path: Path, registry: Registry) -> None:
    empty = Registry(tmp_path / "empty", create=True)
    assert empty.generation == 0
    code, output = benchmark(tmp_path, tmp_path / "empty", "--require", "1e9")
    assert code == 1
    assert "the case of trained stacks is left out" in output
    assert f"{decode_vs_shuttle.RANDOM_CASE}, engine, apart" in output
