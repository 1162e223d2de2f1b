"""`rl:` of a domain: stages by their method, and nothing that a method has not."""

from __future__ import annotations

from typing import Any

import pytest

from brainstacks.errors import ConfigError
from training.recipe.recipe import Recipe, recipe_from
from training.recipe.reinforcement import DpoRecipe, GrpoRecipe


def recipe(rl: Any, **values: Any) -> Recipe:
    return recipe_from({"base": "b", "domains": [{"name": "chat", "rl": rl}], **values})


def test_one_stage_or_several_are_read_by_their_method() -> None:
    assert recipe({"method": "dpo", "beta": 0.2}).domains[0].rl == (DpoRecipe(beta=0.2),)
    both = recipe([{"method": "dpo"}, {"method": "grpo", "reward": "python_tests"}]).domains[0].rl
    assert both == (DpoRecipe(), GrpoRecipe(reward="python_tests"))
    assert recipe(None).domains[0].rl == recipe([]).domains[0].rl == ()


def test_a_stage_is_a_round_with_a_seed_of_its_own_and_neither_noise_nor_dropout() -> None:
    stages = [{"method": "dpo", "steps": 7, "batch_size": 3, "learning_rate": 0.1, "patience": 2}] * 2
    plan = recipe(stages, round={"dropout": 0.1, "accumulation": 2, "clip": 0.5})
    (chat,) = plan.domains
    first, second = (plan.stage_of(chat, n) for n in (0, 1))
    assert (first.steps, first.batch_size, first.learning_rate, first.patience) == (7, 3, 0.1, 2)
    assert (first.accumulation, first.clip) == (2, 0.5)
    assert (first.dropout, first.gate_noise, first.gate_learning_rate) == (0.0, False, None)
    assert len({plan.round_of(chat, 0).seed, first.seed, second.seed}) == 3


def test_the_gates_of_a_stage_learn_as_much_faster_as_those_of_a_round() -> None:
    rates = {"learning_rate": 2e-4, "gate_learning_rate": 6e-4}
    plan = recipe({"method": "dpo", "learning_rate": 5e-5}, round=rates)
    assert plan.stage_of(plan.domains[0], 0).gate_learning_rate == pytest.approx(1.5e-4)


@pytest.mark.parametrize(
    ("rl", "named"),
    [
        ({}, None),
        ({"steps": 3}, "domain 1, rl stage 1: method is None; it is one of dpo, grpo"),
        ({"method": "ppo"}, "method is 'ppo'; it is one of dpo, grpo"),
        ({"method": ["dpo"]}, "one of dpo, grpo"),
        ("dpo", "rl stage 1 is 'dpo'; it is a mapping"),
        ([{"method": "dpo"}, 3], "rl stage 2 is 3; it is a mapping"),
        ({"method": "dpo", "reward": "exact_answer"}, "DpoRecipe has no field 'reward'"),
        ({"method": "dpo", "group_size": 4}, "DpoRecipe has no field 'group_size'"),
        ({"method": "grpo", "data": 3}, "data is 3; it is text"),
        ({"method": "grpo", "reward": "taste"}, "'taste'; it is one of exact_answer, python_tests"),
        ({"method": "dpo", "beta": 0}, "beta is 0; it is positive"),
        ({"method": "grpo", "beta": -1}, "beta is -1; it is at least 0"),
        ({"method": "grpo", "group_size": 1}, "group_size is 1; it is at least 2"),
        ({"method": "grpo", "temperature": 0}, "temperature is 0; it is positive"),
        ({"method": "grpo", "clip": 1}, "clip is 1; it lies between 0 and 1"),
        ({"method": "grpo", "updates": 0}, "updates is 0; it is at least 1"),
        ({"method": "dpo", "held_out": 0}, "held_out is 0; it is at least 1"),
        ({"method": "dpo", "max_nll_rise": -0.1}, "max_nll_rise is -0.1; it is at least 0"),
        ({"method": "dpo", "learning_rate": "1e-4"}, "learning_rate is '1e-4'"),
    ],
)
def test_what_is_unknown_or_contradicts_is_refused_by_name(rl: Any, named: str | None) -> None:
    if named is None:
        assert recipe(rl).domains[0].rl == ()
        return
    with pytest.raises(ConfigError) as error:
        recipe(rl)
    assert named in error.value.message
    assert "domain 1" in error.value.message
