"""No training is made twice, and each starts, goes on and ends with what its design says."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.experiments import designs, earlier_stacks
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.trainings import factors
from brainstacks.errors import ConfigError
from brainstacks.layers.projections import INPUT_GROUPS
from tests.benchmarks.experimenting import settings_of
from tests.tiny import save_base
from training.recipe.recipe import Recipe
from training.recipe.settings import StackRecipe
from training.rounds import compute
from training.rounds.active_stack import ActiveStack
from training.runs.signals import Interrupted, StopRequest


def test_what_was_trained_is_found_and_not_trained_again(
    lab: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = designs.alone(lab.settings, ["math"], 0)
    first = lab.trained(training)
    assert [point["step"] for point in first.history] == [0, 3]
    assert first.seconds > 0
    assert first.tokens > 0
    monkeypatch.setattr("benchmarks.experiments.laboratory.train_round", None)
    again = Laboratory(lab.materials, tmp_path / "kept").trained(training)
    assert again.history == first.history
    for name, tensor in first.stack.tensors.items():
        assert torch.equal(again.stack.tensors[name], tensor)


def test_the_key_tells_apart_whatever_decides_the_result(lab: Laboratory, data: Path, tmp_path: Path) -> None:
    settings, stop = lab.settings, StopRequest()
    training = designs.alone(settings, ["math"], 0)
    others = [
        designs.alone(settings, ["chat"], 0),
        designs.alone(settings, ["math"], 1),
        designs.alone(settings, ["math"], 0, times=2),
        designs.alone(settings, ["math"], 0, scale=2.0),
        designs.alone(settings, ["math"], 0, lab.materials.lora()),
        designs.alone(settings, ["math"], 0, quantization="nf4"),
        *(designs.curriculum(settings, 0, mode)["math"] for mode in earlier_stacks.MODES if mode != "none"),
        *(designs.curriculum(settings, 0, "all", null_space=s)["math"] for s in ("output", "input")),
        designs.curriculum(settings, 0, "all", orthogonality=0.5)["math"],
        designs.sequence(settings, 0, settings.stack)[-1],
        designs.rounds(settings, "math", 0, 2)[-1],
    ]
    keys = {lab.key(t) for t in (training, *others)}
    for changed_settings in (
        dataclasses.replace(settings, batch_size=4),
        dataclasses.replace(settings, selection=3),
        dataclasses.replace(settings, records=7),
    ):
        changed = Materials(changed_settings, data, tmp_path, stop)
        keys.add(Laboratory(changed, tmp_path).key(training))
    assert len(keys) == 1 + len(others) + 3


def test_every_design_scales_its_learning_rate(lab: Laboratory) -> None:
    settings, stack = lab.settings, lab.settings.stack
    half = [
        designs.alone(settings, ["math"], 0, scale=0.5),
        *designs.independent(settings, 0, scale=0.5).values(),
        *designs.curriculum(settings, 0, "all", scale=0.5).values(),
        *designs.sequence(settings, 0, stack, 0.5),
    ]
    assert {training.rate for training in half} == {settings.learning_rate / 2}


def test_what_does_not_bear_on_a_training_leaves_its_key(lab: Laboratory, data: Path, tmp_path: Path) -> None:
    settings = lab.settings
    for mode in earlier_stacks.MODES:
        first = designs.curriculum(settings, 0, mode, null_space="output")["chat"]
        assert first == designs.alone(settings, ["chat"], 0)
    assert designs.curriculum(settings, 0, "none")["math"] == designs.alone(settings, ["math"], 0)
    assert designs.rounds(settings, "math", 0, 3)[0] == designs.alone(settings, ["math"], 0)
    other = dataclasses.replace(settings, validation=2, directions=1)
    changed = Materials(other, data, tmp_path, StopRequest())
    training = designs.alone(settings, ["math"], 0)
    assert Laboratory(changed, tmp_path).key(training) == lab.key(training)


def test_whoever_goes_on_computes_as_the_first_start_chose_and_nothing_else_is_mixed_in(
    tiny_directory: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, settings = tmp_path / "kept", settings_of(tiny_directory, quantization="nf4")

    def dtype_of(materials: Materials) -> str:
        return materials.workshop("nf4").base.dtype_name

    monkeypatch.setattr(compute, "seconds", lambda *asked: (2.0, 1.0))  # bfloat16, float32
    assert dtype_of(Materials(settings, data, kept, StopRequest())) == "float32"
    monkeypatch.setattr(compute, "seconds", lambda *asked: (1.0, 2.0))
    again = Materials(settings, data, kept, StopRequest())
    assert dtype_of(again) == "float32"
    assert dtype_of(again.on(str(save_base(tmp_path / "alike", seed=1)))) == "float32"
    assert dtype_of(Materials(settings, data, tmp_path / "new", StopRequest())) == "bfloat16"

    class Asking(Settings):
        def recipe(self) -> Recipe:
            return dataclasses.replace(super().recipe(), compute="bfloat16")

    with pytest.raises(ConfigError, match="compute is bfloat16, and what is kept was computed in float32"):
        Materials(Asking(**vars(settings)), data, kept, StopRequest())


def test_a_stopped_training_goes_on_to_the_same_weights(
    lab: Laboratory, materials: Materials, tmp_path: Path
) -> None:
    training = designs.alone(lab.settings, ["math"], 0)
    straight = lab.trained(training)
    other = Laboratory(materials, tmp_path / "other")
    stop = materials.workshop("none").stop
    stop.requested = True
    with pytest.raises(Interrupted):
        other.trained(training)
    stop.requested = False
    resumed = other.trained(training)
    assert resumed.history == straight.history
    assert resumed.tokens == straight.tokens
    for name, tensor in straight.stack.tensors.items():
        assert torch.equal(resumed.stack.tensors[name], tensor)


def test_a_training_that_never_helps_gives_what_it_started_from(lab: Laboratory) -> None:
    hopeless = dataclasses.replace(designs.alone(lab.settings, ["math"], 0), rate=1e-30)
    trained = lab.trained(hopeless)
    assert trained.gain == 0.0
    assert all(float(t.abs().max()) == 0.0 for n, t in trained.stack.tensors.items() if n.endswith(".B"))
    first = designs.alone(lab.settings, ["chat"], 0)
    continued = dataclasses.replace(hopeless, initial=first)
    start, end = lab.trained(first), lab.trained(continued)
    for name, tensor in start.stack.tensors.items():
        assert torch.equal(end.stack.tensors[name], tensor)


def test_joint_training_takes_as_much_of_each_domain(lab: Laboratory) -> None:
    chat, math = (lab.materials.examples[d, "train"] for d in ("chat", "math"))
    del math[5:]
    assert lab._examples(("chat", "math"), "train") == [
        e for pair in zip(chat, math, strict=False) for e in pair
    ]


def test_o_lora_keeps_a_later_lora_out_of_the_rows_of_an_earlier_one(lab: Laboratory) -> None:
    lora = lab.materials.lora()
    overlaps = []
    for strength in (0.5, 0.0):
        stacks = designs.curriculum(lab.settings, 0, "all", lora, orthogonality=strength)
        stacks["math"] = dataclasses.replace(stacks["math"], steps=12, rate=2e-2)
        chat, math = (lab.trained(t).stack.tensors for t in stacks.values())
        overlaps.append(sum(float((chat[n] @ math[n].T).square().sum()) for n in chat if n.endswith(".A")))
    assert overlaps[0] < 0.5 * overlaps[1]


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (3, 3), (3, 2)])
def test_factors_are_the_a_of_every_projection_whatever_rows_its_gate_has(
    lab: Laboratory, experts: int, top_k: int
) -> None:
    config = lab.materials.config(StackRecipe(rank=2, experts=experts, top_k=top_k))
    active = ActiveStack(config, lab.materials.identity.dims)
    exported, found = active.export(), factors(active)
    for layer, (group, names) in product(range(config.layers), enumerate(INPUT_GROUPS)):
        for name, A in zip(names, found[f"{layer}_{group}"], strict=True):
            assert torch.equal(A, exported[f"layers.{layer}.{name}.A"])
