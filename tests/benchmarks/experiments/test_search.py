"""The search finds optima wherever they lie, never at an edge, and spends its steps on what is promising."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import pytest

from benchmarks.experiments.search import Budget, Search, Space
from benchmarks.experiments.setting import Setting

START = Setting(rate=2.0**-10, scaling=4.0, experts=4, top_k=2)
SPACE = Space(
    START,
    {"rate": 2.0, "scaling": 4.0},
    {"noise": ("annealed", "off"), "top_k": (1, 4), "dropout": (0.1,)},
)
BUDGET = Budget((10, 20, 40), (16, 4, 2))


class Landscape:
    """Losses with one optimum, which lies at lower rates the longer the training; counts what is trained."""

    def __init__(self, rate: float, scaling: float = 4.0) -> None:
        self.rate, self.scaling = rate, scaling
        self.trained: Counter[int] = Counter()

    def __call__(self, settings: Sequence[Setting], steps: int) -> list[float]:
        self.trained[steps] += len(settings)
        return [self.loss(setting, steps) for setting in settings]

    def loss(self, setting: Setting, steps: int) -> float:
        optimum = self.rate * 10 / steps
        return (
            1.0
            + abs(math.log2(setting.rate / optimum))
            + abs(math.log2(setting.scaling / self.scaling))
            - 0.3 * (setting.noise == "off")
            - 0.2 * (setting.dropout == 0.1)
            + 0.5 * (setting.top_k == 1)
        )


@pytest.mark.parametrize("power", [-20, -11, -10, -2])
@pytest.mark.parametrize("scaling", [4.0**-3, 4.0, 4.0**4])
def test_the_best_is_found_far_from_the_start_with_a_worse_rate_on_either_side(
    power: int, scaling: float
) -> None:
    landscape = Landscape(2.0**power, scaling)
    search = Search(SPACE, BUDGET, landscape)
    best = search.best()
    assert best.rate == 2.0 ** (power - 2), "four times the steps want a quarter of the rate"
    assert (best.scaling, best.noise, best.dropout, best.top_k) == (scaling, "off", 0.1, best.top_k)
    assert best.top_k != 1
    last = {s.rate: loss for s, loss in search.found[40].items() if s.scaling == scaling}
    assert last[best.rate / 2] > last[best.rate] < last[best.rate * 2]


def test_most_settings_get_short_trainings_and_few_long_ones_and_none_is_made_twice() -> None:
    landscape = Landscape(2.0**-10)
    search = Search(SPACE, BUDGET, landscape)
    search.best()
    assert {steps: len(found) for steps, found in search.found.items()} == landscape.trained
    assert [landscape.trained[steps] for steps in BUDGET.lengths[:2]] == [16, 4]
    short, middle = (search.found[steps] for steps in BUDGET.lengths[:2])
    assert max(short[s] for s in middle) <= min(short[s] for s in short if s not in middle)


def test_a_small_space_is_filled_to_the_same_number_from_around_the_next_best() -> None:
    small = Space(Setting(rate=START.rate, scaling=4.0), SPACE.ratios, {"dropout": (0.1,)})
    assert len(set(small.near(small.start))) == 18
    for space in (SPACE, small):
        landscape = Landscape(START.rate)
        Search(space, Budget((10, 20), (25, 2)), landscape).best()
        assert landscape.trained[10] == 25


def test_what_each_choice_is_worth_alone_is_told_and_those_that_help_are_tried_together() -> None:
    search = Search(SPACE, BUDGET, Landscape(2.0**-10))
    search.best()
    assert search.worth["noise"] == {"annealed": 0.0, "off": pytest.approx(-0.3)}
    assert search.worth["dropout"] == {0.1: pytest.approx(-0.2)}
    together = Setting(2.0**-10, 4.0, dropout=0.1, experts=4, top_k=4)
    assert together in search.found[10], "who takes all experts has no noise either"


def test_a_search_of_what_never_learns_ends() -> None:
    def flat(settings: Sequence[Setting], steps: int) -> list[float]:
        return [1.0] * len(settings)

    search = Search(SPACE, BUDGET, flat)
    search.best()
    assert {s.rate for s in search.found[10]} == {START.rate / 2, START.rate, START.rate * 2}


def test_settings_that_take_all_experts_are_one_whatever_their_noise_and_balance() -> None:
    assert Setting(1.0, 1.0, experts=4, top_k=4, noise="on") == Setting(
        1.0, 1.0, experts=4, top_k=4, soft=0.5
    )
    assert Setting(1.0, 1.0, experts=4, top_k=2) != Setting(1.0, 1.0, experts=4, top_k=2, soft=0.5)


def test_a_setting_says_what_is_not_as_in_the_paper() -> None:
    assert str(START) == "rate 0.00098, scale 4"
    told = str(Setting(0.1, 1.0, experts=4, top_k=2, noise="off", gate_rate=4.0))
    assert told == "rate 0.1, scale 1, gate rate 4.0, noise off"


def test_a_setting_counts_noise_weights_where_it_trains_them() -> None:
    counted = [
        dataclasses.replace(START, noise=noise).parameters(2, {"q_proj": (8, 6)}, layers=3).noise
        for noise in ("on", "annealed", "off")
    ]
    assert counted == [3 * 4 * 8, 3 * 4 * 8, 0]


def test_a_settings_training_has_all_of_it() -> None:
    setting = Setting(0.5, 2.0, 0.1, 4, 2, gate_rate=4.0, gate_init=0.25, noise="annealed", soft=0.5)
    training = setting.training(16, "math", 40, 1, "nf4")
    assert training.stack.config(2).scaling == pytest.approx(2.0)
    assert (training.stack.rank, training.stack.experts, training.stack.top_k) == (16, 4, 2)
    assert (training.gating.init, training.gating.annealed, training.gating.soft) == (0.25, True, 0.5)
    assert dict(training.changes) == {
        "dropout": 0.1,
        "gate_learning_rate": 2.0,
        "gate_noise": True,
        "balance_coefficient": 0.01,
    }
    assert dict(Setting(0.5, 2.0).training(64, "math", 40, 1, "nf4").changes) == {"dropout": 0.0}
