"""Deterministic: tokens and log-probabilities are the same bits, whatever else is in the batch."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brainstacks.base_model import load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest, GenerationRequest
from brainstacks.engine.runner.flight import Flight
from brainstacks.engine.scheduler import Row
from brainstacks.layers.bank import StackBank
from brainstacks.stacks.registry import Registry
from tests.engine import driving
from tests.engine.driving import Answer, finish, fixed, prompt_of, request, run, serve, start
from tests.tiny import save_base

pytestmark = pytest.mark.usefixtures("each_backend")

COMPOSITIONS = [
    CompositionRequest("routed"),
    fixed(chat=0.9, math=0.8),
    CompositionRequest("base"),
    fixed(code=1.0),
    CompositionRequest("ungated"),
]


def drawn(name: str, seed: int, wanted: int = 24) -> GenerationRequest:
    rng = random.Random(seed)
    return request(
        name,
        prompt_of(rng.randint(3, 90), seed=seed),
        COMPOSITIONS[seed % len(COMPOSITIONS)],
        max_tokens=wanted,
        logprobs=3,
        n=1 + (seed % 4 == 3),
        ignore_eos=True,
    )


def seen(answer: Answer) -> tuple[object, ...]:
    """Everything that depends on logits, as floats that have to be equal to the last bit."""
    routing = answer.routed.routing
    return (routing.probabilities, routing.weights, answer.ids(), answer.logprobs())


def among_others(engine: StepEngine, one: GenerationRequest, seed: int) -> Answer:
    """`one` with 15 different neighbours, which come, go and are aborted at random times."""
    rng = random.Random(seed)
    arrivals = [drawn(f"n{seed}-{i}", 1000 * seed + i, rng.randint(1, 40)) for i in range(15)]
    arrivals.insert(rng.randrange(12), one)
    answer = Answer()
    for arriving in arrivals:
        if arriving is one:
            engine.add(one, answer.events.append)
        else:
            start(engine, arriving)
        for _ in range(rng.randrange(3)):
            engine.step()
    engine.abort(f"n{seed}-{rng.randrange(15)}")
    finish(engine)
    return answer


def assert_independent(engine: StepEngine, seeds: range, crowds: int) -> None:
    for seed in seeds:
        one = drawn("one", seed)
        (alone,) = run(engine, one)
        assert not alone.errors
        for crowd in range(1, 1 + crowds):
            assert seen(among_others(engine, one, 10 * seed + crowd)) == seen(alone)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_float32_answers_are_the_same_bits_alone_and_in_a_crowd(tmp_path: Path, family: str) -> None:
    served = serve(tmp_path, family, router=True, deterministic=True, max_prefill_tokens=32)
    assert_independent(served.engine, range(3), 2)


class Products(TorchDispatchMode):
    """Shapes of every product that the last forward had: of NF4 linears, of others and of stacks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(("bitsandbytes.gemm_4bit", "aten.mm", "aten.addmm")):
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            self.shapes.append((name, *(tuple(tensor.shape) for tensor in tensors)))
        return func(*args, **(kwargs or {}))


def products_of(engine: StepEngine, *requests: GenerationRequest) -> list[tuple[list[Row], list[Any]]]:
    """The rows of every forward until `requests` are done, and the shapes of its products."""
    forwards: list[tuple[list[Row], list[Any]]] = []
    launch = engine._runner.launch

    def recorded(rows: Sequence[Row], bank: StackBank) -> Flight:
        with Products() as seen:
            flight = launch(rows, bank)
        forwards.append((list(rows), seen.shapes))
        return flight

    engine._runner.launch = recorded  # type: ignore[method-assign]
    try:
        run(engine, *requests)
    finally:
        engine._runner.launch = launch  # type: ignore[method-assign]
    return forwards


def test_every_product_of_a_step_has_the_shape_that_it_has_whatever_the_load(tmp_path: Path) -> None:
    """bitsandbytes and cuBLAS choose their kernels by it, and round by their choice."""
    if driving.backend != "torch":
        pytest.skip("the compiled step's products do not depend on their shape")
    saved = save_base(tmp_path / "base", hidden_size=64, intermediate_size=128, head_dim=16)
    base = load_base(saved, quantization="nf4", device="cpu")
    config = EngineConfig(backend="torch", deterministic=True, max_prefill_tokens=16, max_batch_size=6)
    engine = StepEngine(base, None, config)
    prompts = [prompt_of(length, seed=length) for length in (40, 7, 16, 33)]
    base_only = CompositionRequest("base")
    requests = [request(f"r{i}", prompt, base_only, max_tokens=5 + i) for i, prompt in enumerate(prompts)]
    together = products_of(engine, *requests)
    by_part: dict[tuple[int, int], list[Any]] = {}
    decoding: list[list[Any]] = []
    for rows, shapes in [*together, *(each for one in requests for each in products_of(engine, one))]:
        if all(row.start >= len(row.completion.request.prompt_ids) for row in rows):
            decoding.append(shapes)
        else:
            (row,) = rows
            assert by_part.setdefault((row.start, row.count), shapes) == shapes, "of the prompt's own part"
    assert decoding[0]
    assert all(shapes == decoding[0] for shapes in decoding), "however many rows decode"
    assert {shape[1][-2] for shape in decoding[0] if "gemm_4bit" in shape[0]} == {config.max_batch_size}
    assert {count for _, count in by_part} == {16, 8, 7, 1}


@pytest.fixture(scope="module")
def packaged(each_backend: None, tmp_path_factory: pytest.TempPathFactory) -> StepEngine:
    """The packaged NF4 base with the demo stacks, as they are served."""
    directory = tmp_path_factory.mktemp("demo") / "registry"
    shutil.copytree(Path(__file__).parents[2] / "stacks_registry", directory)
    base = load_base("packaged:smollm2-135m-instruct", quantization="nf4", device="cpu")
    config = EngineConfig(backend=driving.backend, deterministic=True, max_prefill_tokens=64)
    return StepEngine(base, Registry(directory), config)


@pytest.mark.slow
def test_nf4_answers_are_the_same_bits_alone_and_in_a_crowd(packaged: StepEngine) -> None:
    assert_independent(packaged, range(1), 1)
