"""How long a run takes is what is measured of a layer, times how often it is computed."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch

from tests.tiny import tiny_config
from training.curriculum import pace
from training.curriculum.pace import Pace, Times, measure_pace, times
from training.recipe.recipe import Recipe, recipe_from


def recipe(**changes: Any) -> Recipe:
    return recipe_from(
        {
            "base": "b",
            "data": {"max_tokens": 100, "selection": 10, "validation": 20},
            "round": {"steps": 50, "batch_size": 4, "accumulation": 2, "eval_every": 25},
            "router": {"prompts": 6, "held_out": 2, "max_tokens": 50, "soft_levels": [1.0, 0.5]},
            "domains": [{"name": "a"}, {"name": "b", "steps": 100, "max_rounds": 2}],
            **changes,
        }
    )


def test_times_are_counts_times_the_pace() -> None:
    steps = (50 + 2 * 100) * 2 * 4 * 100
    evaluated = (3 * 10 + 2 * 20 + 2 * 5 * 10 + 2 * 20) * 100
    rows = 2**3 + 2 * 3 * 2  # combinations, then two searches over two levels of each of three domains
    outcomes = 3 * (6 + 2) * rows * 50
    assert times(recipe(), Pace(2.0, 0.5, 0.25), 3) == Times(2 * steps, evaluated / 2, outcomes / 4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma3"])
def test_a_layer_counts_as_often_as_there_are_layers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def seconds(recipe: Any, model: Any, *rest: Any) -> tuple[float, float, float]:
        measured.append(len(model.get_decoder().layers))
        return tuple(part + len(model.get_decoder().layers) for part in (1.0, 2.0, 3.0))  # type: ignore[return-value]

    monkeypatch.setattr(pace, "_seconds", seconds)
    config = tiny_config(family)
    layers = config.get_text_config().num_hidden_layers
    found = measure_pace(recipe(), config, torch.device("cpu"), torch.float32, 0, 1)
    assert measured == [2, 1]
    threads = torch.get_num_threads()
    assert astuple(found) == pytest.approx([(part + layers) / threads for part in (1.0, 2.0, 3.0)])
    assert torch.get_num_threads() == threads


def test_a_step_takes_longer_than_a_forward_of_its_own() -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512)
    found = measure_pace(recipe(), config, torch.device("cpu"), torch.float32, 0, 2)
    assert found.step > found.forward > 0
    assert found.routed > 0
