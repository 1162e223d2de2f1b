"""The questions that the simulation is asked, as lists of simulations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.scaling.figures import Figures, estimate, over_seeds
from benchmarks.scaling.profile import Profile
from benchmarks.scaling.replica import Room
from benchmarks.scaling.requests import Lengths, Traffic, domain_names
from benchmarks.scaling.simulation import in_turn, simulate
from training.evaluation.intervals import Estimate

SATURATING = 400
"""Requests of the run that finds out what one replica can do."""
UNIT_DOMAINS = 50
PATIENCE_S = 2.0
"""p95 of the time to first token that counts as served."""
HALVINGS = 6
MOST_LOAD = 1.6
"""In units of what one replica can do; reuse of prompts makes more than 1 possible."""


@dataclass(frozen=True)
class Setting:
    """Attributes:
    load: requests a second of each replica, over what one can do that has all stacks of 50 domains.
    requests: of each replica, in each simulation; a fleet has at least `least`.
    """

    profile: Profile
    room: Room
    lengths: Lengths
    load: float
    requests: int
    least: int
    seeds: Sequence[int]


@dataclass(frozen=True)
class Cell:
    """One fleet under one router: the mean over the seeds of each figure."""

    replicas: int
    domains: int
    router: str
    figures: dict[str, Estimate]


def one_replica(profile: Profile, lengths: Lengths, domains: int = UNIT_DOMAINS) -> float:
    """Requests a second that one replica does that always has work and all stacks there.

    Every request is a conversation of its own, so that nothing is found of its prompt.
    """
    requests = Traffic(domains, 1.0, turns=1.0).requests(SATURATING, lengths, seed=0)
    for number, request in enumerate(requests):
        request.history, request.conversation = 0, number
    at_once = 2 * profile.max_batch
    return SATURATING / in_turn(requests, profile, Room(domains, 0), at_once, domain_names(domains)).end


def measure(
    setting: Setting, unit: float, replicas: int, domains: int, router: str, load: float | None = None
) -> list[Figures]:
    """A simulation for each seed; a seed gives every router the same requests.

    Args:
        unit: of `one_replica`.
        load: in the place of the setting's.
    """
    rate = replicas * unit * (setting.load if load is None else load)
    count = max(setting.least, replicas * setting.requests)
    found = []
    for seed in setting.seeds:
        requests = Traffic(domains, rate).requests(count, setting.lengths, seed)
        run = simulate(requests, domains, setting.profile, setting.room, replicas, router, seed)
        found.append(Figures.of(run))
    return found


def grid(
    setting: Setting, unit: float, replicas: Sequence[int], domains: Sequence[int], routers: Sequence[str]
) -> Iterator[Cell]:
    """Every fleet under every router."""
    for each in domains:
        for count in replicas:
            for router in routers:
                yield Cell(count, each, router, over_seeds(measure(setting, unit, count, each, router)))


def most_load(setting: Setting, unit: float, replicas: int, domains: int, router: str) -> Estimate:
    """The largest load at which the p95 of the time to first token stays within `PATIENCE_S`.

    Found for each seed by halving, to 0.03.
    """

    def largest(seed: int) -> float:
        low, high = 0.0, MOST_LOAD
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            (figures,) = measure(replace(setting, seeds=(seed,)), unit, replicas, domains, router, middle)
            low, high = (middle, high) if figures.first_p95 <= PATIENCE_S else (low, middle)
        return low

    return estimate([largest(seed) for seed in setting.seeds])


def loads_within_patience(
    settings: dict[str, Setting],
    replicas: int,
    domains: int,
    routers: Sequence[str],
    done: Callable[[str], object],
) -> dict[str, dict[str, Estimate]]:
    """Setting -> router -> `most_load`, in requests a second of each replica."""
    found: dict[str, dict[str, Estimate]] = {}
    for name, setting in settings.items():
        unit = one_replica(setting.profile, setting.lengths)
        found[name] = {}
        for router in routers:
            most = most_load(setting, unit, replicas, domains, router)
            low, high = most.interval
            found[name][router] = Estimate(unit * most.value, (unit * low, unit * high))
            done(f"{name}, {router}")
    return found
