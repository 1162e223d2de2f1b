"""Every mode's loss is that of its composition, and the oracle's the lowest of all."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from brainstacks.base_model import identify_base, load_base
from brainstacks.errors import ConfigError
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from tests.tiny import publish_stack, random_stack, write_router
from tests.training.curricula import quiet
from tests.training.examples import plain_nll
from training.data.domains import DomainData
from training.data.encoding import Example
from training.data.records import Message, Record
from training.evaluation.evaluation import COMBINATION, MODES, ORACLE, Evaluation
from training.evaluation.router import measure_transfer
from training.evaluation.validation import evaluate, load_served, validation_examples
from training.recipe.settings import RouterRecipe
from training.router.stacked_base import StackedBase, Weights

STACKS = ("chat", "math")
Served = tuple[StackedBase, Router, dict[str, StackTensors]]


@pytest.fixture(scope="module")
def served(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Stacks for chat and math, and a router."""
    directory = tmp_path_factory.mktemp("served")
    registry, identity = Registry(directory / "registry", create=True), identify_base(tiny_directory)
    stacks = {d: random_stack(identity.dims, i, size=0.3) for i, d in enumerate(STACKS)}
    for domain, stack in stacks.items():
        publish_stack(registry, identity, domain, stack, directory)
    registry.publish_router(write_router(directory / "router.safetensors", registry, identity))
    stacked, router = load_served(load_base(tiny_directory, quantization="none"), registry)
    assert router is not None
    return stacked, router, stacks


def data(*domains: str) -> dict[str, DomainData]:
    """Five validation records a domain, of different lengths."""
    found = {}
    for domain in domains:
        records = [
            Record(f"{domain}{i}", (Message("user", domain * (i + 1)),), "yes " * (1 + (3 * i) % 5))
            for i in range(5)
        ]
        found[domain] = DomainData(domain, [], [], records, (), {}, 0, ())
    return found


def plain_nats(example: Example, weights: Weights, stacks: dict[str, StackTensors]) -> float:
    return plain_nll(example, [(stacks[d], weight) for d, weight in weights.items()])


def run(served: Served, *domains: str, **options: int | None) -> Evaluation:
    settings: dict[str, Any] = {
        "max_tokens": 512,
        "router_digest": "d" * 64,
        "search": RouterRecipe(),
        **options,
    }
    return evaluate(served[0], served[1], data(*domains), report=quiet, **settings)


def test_each_modes_loss_is_that_of_its_composition(served: Served) -> None:
    stacked, router, stacks = served
    found = run(served, *STACKS, oracle_limit=0)
    examples = validation_examples(stacked, data(*STACKS), None, 512)
    assert [r.id for r in found.records] == [e.id for d in STACKS for e in examples[d]]
    threshold = router.config.gate_threshold
    for record, example in zip(found.records, [e for d in STACKS for e in examples[d]], strict=True):
        (probabilities,) = router.probabilities(stacked.base, [example.prompt])
        assert record.routed == pytest.approx({d: p for d, p in probabilities.items() if p > threshold})
        compositions: dict[str, Weights] = {
            "base": {},
            "ungated": dict.fromkeys(STACKS, 1.0),
            "routed": record.routed,
            "only-own": {record.domain: 1.0},
        }
        assert set(record.nats) == set(MODES)
        for mode, weights in compositions.items():
            expected = plain_nats(example, weights, stacks)
            assert record.nats[mode] == pytest.approx(expected, abs=1e-3), mode
        assert record.tokens == len(example.response)


def test_the_oracle_is_the_best_of_all_combinations_on_the_first_records(served: Served) -> None:
    stacked, _, stacks = served
    found = run(served, "chat", oracle_limit=2)
    examples = validation_examples(stacked, data("chat"), None, 512)["chat"]
    assert [ORACLE in r.nats for r in found.records] == [True, True, False, False, False]
    assert [r.oracle is None for r in found.records] == [False, False, True, True, True]
    for record, example in zip(found.compared.records, examples, strict=False):
        subsets = itertools.chain.from_iterable(itertools.combinations(STACKS, n) for n in range(3))
        lowest = min(plain_nats(example, dict.fromkeys(c, 1.0), stacks) for c in subsets)
        assert record.nats[COMBINATION] == pytest.approx(lowest, abs=1e-3)
        assert record.nats[ORACLE] <= record.nats[COMBINATION]
        assert record.oracle is not None
        assert plain_nats(example, record.oracle, stacks) <= record.nats[ORACLE] + 0.011 * record.tokens
        assert 0.0 not in record.oracle.values()


def test_a_domain_without_a_stack_of_its_own_is_its_base(served: Served) -> None:
    found = run(served, "noise", oracle_limit=1)
    assert found.nll["noise"]["only-own"] == found.nll["noise"]["base"]
    assert found.nll["noise"]["ungated"] != found.nll["noise"]["base"]


def test_a_domain_with_nothing_to_measure_is_refused(served: Served) -> None:
    with pytest.raises(ConfigError, match="no validation record of chat fits 16 tokens"):
        run(served, "chat", max_tokens=16)


def test_only_the_first_records_are_measured_where_a_limit_is_given(served: Served) -> None:
    assert [r.id for r in run(served, "chat", limit=2, oracle_limit=0).records] == ["chat0", "chat1"]


def test_a_registry_without_router_is_refused(tiny_directory: Path, registry: Registry) -> None:
    with pytest.raises(ConfigError, match="no stacks, or neither a router nor a signature"):
        load_served(load_base(tiny_directory, quantization="none"), registry)


def test_transfer_is_each_single_stack_against_the_base(served: Served) -> None:
    stacked, _, stacks = served
    examples = validation_examples(stacked, data("chat", "noise"), 3, 512)
    found = measure_transfer(stacked, examples)
    for domain, some in examples.items():
        tokens = sum(len(e.response) for e in some)
        base = sum(plain_nats(e, {}, stacks) for e in some) / tokens
        assert found.base[domain] == pytest.approx(base, abs=1e-4)
        for stack in STACKS:
            alone = sum(plain_nats(e, {stack: 1.0}, stacks) for e in some) / tokens
            assert found.gain(domain, stack) == pytest.approx(base - alone, abs=1e-3)
            low, high = found.gain_intervals[domain][stack]
            assert low <= found.gain(domain, stack) <= high
