"""`training.runs.stored`: what is taken apart comes back exactly, through JSON and a checkpoint."""

from __future__ import annotations

import json
import random
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from training.runs.checkpoint import load, save
from training.runs.stored import flatten, unflatten

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3))
STATES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), inner, max_size=3),
    ),
)


def types(value: Any) -> Any:
    """The types in a nested value, its keys among them and in their order."""
    if isinstance(value, dict):
        return [(type(k), k, types(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [types(v) for v in value]
    return type(value)


@given(STATES)
def test_flatten_and_unflatten_are_exact_through_json(value: Any) -> None:
    tensors, skeleton = flatten(value)
    back = unflatten(tensors, json.loads(json.dumps(skeleton, sort_keys=True)))
    assert tensors == {}
    assert back == value
    assert types(back) == types(value)


def test_tensors_are_found_wherever_they_are() -> None:
    a, b = torch.ones(2), torch.zeros(())
    value = {0: [a, (b, {"tensor": a})], "0": {"dict": b, "tuple": (1,)}, "list": []}
    tensors, skeleton = flatten(value)
    assert list(tensors) == ["0", "1", "2", "3"]
    back = unflatten(tensors, json.loads(json.dumps(skeleton)))
    assert back == value
    assert back[0][1][1]["tensor"] is a


@pytest.mark.parametrize("value", [{1.5: 0}, {True: 0}, {1}, object(), Counter("a"), b"a", [1j]])
def test_what_would_not_come_back_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="a state dict holds"):
        flatten({"state": value})


def training(seed: int = 0) -> tuple[nn.Linear, torch.optim.AdamW, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(seed)
    layer = nn.Linear(5, 3)
    groups: list[dict[str, Any]] = [{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), amsgrad=True)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    return layer, optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [3])


def steps(count: int, layer: nn.Linear, optimizer: Any, scheduler: Any) -> None:
    for _ in range(count):
        layer(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def test_an_optimizer_a_schedule_and_generators_go_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    straight = training()
    steps(4, *straight)
    random.seed(1)
    whole = {
        "layer": straight[0].state_dict(),
        "optimizer": straight[1].state_dict(),
        "scheduler": straight[2].state_dict(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }
    tensors, skeleton = flatten(whole)
    save(tmp_path / "step-4", tensors, {"all": skeleton})
    expected = random.random()
    steps(4, *straight)

    resumed = training(seed=9)
    found = load(tmp_path / "step-4")
    assert found is not None
    state = unflatten(found.tensors, found.state["all"])
    resumed[0].load_state_dict(state["layer"])
    resumed[1].load_state_dict(state["optimizer"])
    resumed[2].load_state_dict(state["scheduler"])
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    assert random.random() == expected
    steps(4, *resumed)
    ours, theirs = ({"m": m.state_dict(), "o": o.state_dict()} for m, o, _ in (resumed, straight))
    assert same(ours, theirs)
    assert resumed[2].state_dict() == straight[2].state_dict()


def same(ours: Any, theirs: Any) -> bool:
    """Whether two state dicts hold equal tensors under equal skeletons."""
    (a, skeleton_a), (b, skeleton_b) = flatten(ours), flatten(theirs)
    return skeleton_a == skeleton_b and all(torch.equal(a[name], b[name]) for name in a)


def test_an_ordered_dict_is_a_dict() -> None:
    tensors: dict[str, Tensor]
    tensors, skeleton = flatten(OrderedDict(a=1))
    assert unflatten(tensors, skeleton) == {"a": 1}
