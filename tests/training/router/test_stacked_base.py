"""Losses equal the plain maths row by row, and routed weights are those that serving applies."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from brainstacks import ComposedModel
from brainstacks.base_model import BaseModel, load_base
from brainstacks.errors import IncompatibleArtifact
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from tests.tiny import (
    publish_stack,
    random_stack,
    save_base,
    stack_config,
    write_router,
)
from tests.training.examples import example, plain_nll, random_examples
from training.router.stacked_base import StackedBase, Weights, routed_weights

DOMAINS = ("a", "b", "c")


@pytest.fixture
def stacked(tiny_base: BaseModel, tiny_directory: Path, registry: Registry, tmp_path: Path) -> StackedBase:
    for i, domain in enumerate(DOMAINS):
        stack = random_stack(tiny_base.identity.dims, i, size=0.3)
        publish_stack(registry, tiny_base.identity, domain, stack, tmp_path)
    return StackedBase.load(load_base(tiny_directory, quantization="none"), registry)


def test_a_stack_that_applies_to_the_response_leaves_the_prompt_alone(
    tiny_base: BaseModel, tiny_directory: Path, registry: Registry, tmp_path: Path
) -> None:
    dims = tiny_base.identity.dims
    late = random_stack(dims, 0, size=0.3, config=stack_config(applies="response"))
    stacks = {"late": late, "early": random_stack(dims, 1, size=0.3)}
    for domain, stack in stacks.items():
        publish_stack(registry, tiny_base.identity, domain, stack, tmp_path)
    stacked = StackedBase.load(load_base(tiny_directory, quantization="none"), registry)
    examples = random_examples(6, seed=7)
    weights: list[Weights] = [{"late": 1.0}, {"early": 1.0}, {"late": 0.5, "early": 0.7}] * 2
    expected = [
        plain_nll(
            e, [(stacks[d], weight, len(e.prompt) - 1 if d == "late" else 0) for d, weight in w.items()]
        )
        for e, w in zip(examples, weights, strict=True)
    ]
    assert stacked.losses(examples, weights) == pytest.approx(expected, abs=1e-3)
    whole = plain_nll(examples[0], [(late, 1.0)])
    assert abs(whole - expected[0]) > 0.01, "this would not be seen"


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 30, 4096])
def test_losses_equal_one_example_at_a_time_whatever_the_budget(stacked: StackedBase, tokens: int) -> None:
    examples = random_examples(6, seed=7)
    weights: list[Weights] = [{"a": 1.0}, {}, {"b": 0.5, "c": 1.0}, {"a": 0.0}, {"c": -0.4}, {"a": 1.0}]
    dims = stacked.base.identity.dims
    stacks = {d: random_stack(dims, i, size=0.3) for i, d in enumerate(DOMAINS)}
    expected = [
        plain_nll(e, [(stacks[d], weight) for d, weight in w.items()])
        for e, w in zip(examples, weights, strict=True)
    ]
    assert stacked.losses(examples, weights, tokens) == pytest.approx(expected, abs=1e-3)
    assert stacked.losses([], []) == []


@pytest.mark.parametrize("tokens", [1, 60, 4096])
def test_one_prompt_for_several_compositions_gives_what_each_alone_does(
    tiny_base: BaseModel, tiny_directory: Path, registry: Registry, tmp_path: Path, tokens: int
) -> None:
    dims, late = tiny_base.identity.dims, stack_config(applies="response")
    stacks = {"late": random_stack(dims, 0, size=0.3, config=late), "early": random_stack(dims, 1, size=0.3)}
    for domain, stack in stacks.items():
        publish_stack(registry, tiny_base.identity, domain, stack, tmp_path)
    stacked = StackedBase.load(load_base(tiny_directory, quantization="none"), registry)
    examples = [example((1, 2, 3, 4), (5, 6, 7)), example((9,), (8, 7)), *random_examples(2, seed=7)]
    points = itertools.product((0.0, 0.5, 1.0), (0.0, 1.0))
    pairs = [(e, {"late": a, "early": b}) for a, b in points for e in examples]
    computed: list[list[list[int]]] = []
    handle = stacked.base.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    found = stacked.losses([e for e, _ in pairs], [w for _, w in pairs], tokens)
    handle.remove()
    alone = [stacked.nll([e], [w]).item() for e, w in pairs]
    assert found == pytest.approx(alone, abs=1e-4)
    assert computed.count([[1, 2, 3]]) == 2, "once for each weight of the stack that acts on it"


def test_rows_that_share_a_prompt_are_as_many_as_a_budget_of_whole_rows_allows(stacked: StackedBase) -> None:
    whole = example(tuple(range(1, 41)), (5, 6))
    held: list[tuple[int, int]] = []
    handle = stacked.base.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: held.append(
            (len(kwargs["input_ids"]), kwargs["past_key_values"].get_seq_length())
        ),
        with_kwargs=True,
    )
    weights: list[Weights] = [{"a": 1.0}] * 7
    stacked.losses([whole] * 7, weights, tokens=3 * len(whole))
    handle.remove()
    assert held == [(1, 0), (3, 39), (3, 39), (1, 39)], "rows, and the tokens before them that each keeps"


def test_a_stack_of_another_base_is_refused(stacked: StackedBase, registry: Registry, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", seed=1)
    with pytest.raises(IncompatibleArtifact):
        StackedBase.load(load_base(other, quantization="none"), registry)


# --- routing -------------------------------------------------------------------------------------


def test_routed_weights_are_those_that_serving_applies(
    stacked: StackedBase, tiny_directory: Path, registry: Registry, tmp_path: Path
) -> None:
    changes = {"floors": {"a": 0.9}, "gate_threshold": 0.5}
    path = write_router(tmp_path / "router.safetensors", registry, stacked.base.identity, seed=4, **changes)
    registry.publish_router(path)
    served = ComposedModel.load(tiny_directory, tmp_path / "registry", quantization="none", device="cpu")
    router = Router.load(path, stacked.base)
    texts = ["hello", "2 + 2", "def f(x):", "why?"]
    prompts = [stacked.tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]
    found = routed_weights(stacked, router, router.probabilities(stacked.base, prompts))
    assert len({tuple(weights) for weights in found}) > 1, "the gate lets some through and not others"
    for text, weights in zip(texts, found, strict=True):
        route = served.route(text)
        assert weights == pytest.approx({d: route.weights[d] for d in route.active}, abs=1e-5)


def test_a_stack_that_the_router_was_not_trained_with_is_left_out(
    stacked: StackedBase, tiny_base: BaseModel, tiny_directory: Path, registry: Registry, tmp_path: Path
) -> None:
    path = write_router(tmp_path / "router.safetensors", registry, stacked.base.identity)
    router = Router.load(path, stacked.base)
    sure = [dict.fromkeys(DOMAINS, 0.75)]
    assert routed_weights(stacked, router, sure) == sure
    newer = random_stack(tiny_base.identity.dims, 9)
    publish_stack(registry, tiny_base.identity, "b", newer, tmp_path)
    now = StackedBase.load(load_base(tiny_directory, quantization="none"), registry)
    assert routed_weights(now, router, sure) == [{"a": 0.75, "c": 0.75}]
