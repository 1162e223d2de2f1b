"""LoGo tells what slow, obvious code tells; prototypes know their domains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.adapter_routers.contestants import by_signature, logo, nearest_prototype
from brainstacks.config import MetaRouterConfig
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from tests.benchmarks.adapter_routers.slow import inputs
from tests.routing.signed import signature_around, write_signed
from tests.tiny import plain_delta
from training.data.encoding import Example
from training.router.stacked_base import StackedBase


@pytest.mark.parametrize("entropy", [False, True])
def test_logo_shares_the_signals_of_the_stacks_own_outputs(
    entropy: bool, stacked: StackedBase, stacks: dict[str, StackTensors], examples: list[Example]
) -> None:
    told = logo(stacked, 2, entropy=entropy).believe([e.prompt for e in examples])
    (only,) = logo(stacked, 1, entropy=entropy).believe([examples[0].prompt])
    for example, weights in zip(examples, told, strict=True):
        x = inputs(stacked, example.prompt)[1, "q_proj"][-1:]
        signals = {}
        for domain, stack in stacks.items():
            output = plain_delta(stack, 1, "q_proj", x)[0]
            p = output.softmax(-1)
            signals[domain] = float(1 / -(p * p.log()).sum()) if entropy else float(output.norm())
        assert weights == pytest.approx({d: s / sum(signals.values()) for d, s in signals.items()}, abs=1e-5)
    assert sorted(only.values()) == [0.0, 1.0]
    assert max(only, key=only.__getitem__) == max(told[0], key=told[0].__getitem__)


def test_signatures_route_as_they_are_served(
    stacked: StackedBase, stacks: dict[str, StackTensors], served: Registry, tmp_path: Path
) -> None:
    assert by_signature(stacked) is None
    near = {"zoology": [tuple(range(30, 39))] * 2, "art": [tuple(range(150, 159))] * 2}
    for domain, prompts in near.items():
        signature = signature_around(stacked.base, prompts)
        path = tmp_path / f"{domain}-signed.safetensors"
        served.publish(write_signed(path, stacked.base, domain, stacks[domain], signature))
    router = by_signature(StackedBase.load(stacked.base, served))
    assert router is not None
    told = router.believe([near["art"][0], near["zoology"][0]])
    assert [set(weights) for weights in router.apply(told)] == [{"art"}, {"zoology"}]
    assert router.apply([{"zoology": 0.1, "art": 0.6}]) == [{"art": 0.6}], "the gate holds"


def test_the_nearest_prototype_is_that_of_the_domain_whose_prompts_are_alike(stacked: StackedBase) -> None:
    def prompts(first: int) -> list[Example]:
        return [Example(str(i), tuple(range(first + i, first + i + 9)), (1,)) for i in range(4)]

    config = MetaRouterConfig(domains=("zoology", "art"), token_dim=stacked.base.identity.hidden_size)
    router = nearest_prototype(stacked, config, {"zoology": prompts(30), "art": prompts(150)})
    seen: Sequence[Sequence[int]] = [tuple(range(31, 39)), tuple(range(152, 161))]
    zoology, art = router.believe(seen)
    assert zoology["zoology"] > 0.5 > art["zoology"]
    assert sum(art.values()) == pytest.approx(1)
