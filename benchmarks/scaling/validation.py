"""The simulated replica beside what the program did on this machine, in loads that were not fitted."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.instruments.results import RESULTS
from benchmarks.scaling.profile import DEMO, MEASURED, R16, load_profile
from benchmarks.scaling.replica import Room
from benchmarks.scaling.requests import Request, domain_names
from benchmarks.scaling.simulation import Run, in_turn
from benchmarks.serving import traffic

DISK_ALONE = "budget, the rest on disk"
HTTP_PROMPT = 26
"""Tokens of a prompt of `http_load`, in the mean."""


@dataclass(frozen=True)
class Compared:
    """One figure of one committed result."""

    file: str
    case: str
    figure: str
    measured: float
    simulated: float

    @property
    def ratio(self) -> float:
        return self.simulated / self.measured


def compare(directory: Path = RESULTS) -> list[Compared]:
    """Raises ConfigError: results are not there."""
    return [*_residency(directory), *_http_load(directory)]


def _residency(directory: Path) -> list[Compared]:
    """One stack a request, room for few; the same draws of domains."""
    profile = load_profile(DEMO, directory=directory)
    name = f"residency-{MEASURED}.json"
    document = json.loads((directory / name).read_text(encoding="utf-8"))
    asked = document["settings"]
    rooms = {
        "all on the device": Room(asked["domains"], 0),
        "budget, the rest in host memory": Room(asked["budget"], asked["domains"]),
        DISK_ALONE: Room(asked["budget"], 0),
    }
    found = []
    for case, room in rooms.items():
        runs = []
        for number in range(asked["rounds"]):
            drawn = traffic.zipf(asked["domains"], asked["requests"], asked["seed"] + number)
            requests = [_request((str(domain),), 16, asked["tokens"], i) for i, domain in enumerate(drawn)]
            there = domain_names(0 if case == DISK_ALONE else asked["domains"])
            runs.append(in_turn(requests, profile, room, asked["concurrency"], there))
        measured = document["contestants"][case]
        for figure, of in (("tokens_per_second", _rate), ("hit_rate", _hits)):
            simulated = statistics.median(of(run) for run in runs)
            found.append(Compared(name, case, figure, measured[figure]["median"], simulated))
    return found


def _http_load(directory: Path) -> list[Compared]:
    """Sixteen clients, ten r16 stacks on the device; client and server share this machine's cores."""
    profile = load_profile(R16, directory=directory)
    name = f"http_load-{MEASURED}.json"
    document = json.loads((directory / name).read_text(encoding="utf-8"))
    asked = document["settings"]
    domains = domain_names(10)
    count = asked["clients"] * asked["requests"]
    apart = traffic.distinct(domains, asked["clients"], asked["seed"])
    mixes: dict[str, list[tuple[str, ...]]] = {
        "base only": [()] * count,
        "identical": [tuple(domains[:4])] * count,
        "distinct": [tuple(apart[i % len(apart)]) for i in range(count)],
    }
    found = []
    for case, compositions in mixes.items():
        requests = [
            _request(stacks, HTTP_PROMPT, asked["tokens"], i) for i, stacks in enumerate(compositions)
        ]
        run = in_turn(requests, profile, Room(10, 0), asked["clients"], domains)
        there = document["mixes"][case]
        for figure, simulated in (
            ("tokens_per_second", _rate(run)),
            ("first_token_ms_p50", 1000 * statistics.median(one.first - one.arrival for one in run.requests)),
        ):
            found.append(Compared(name, case, figure, there[figure]["median"], simulated))
    return found


def _request(stacks: tuple[str, ...], prompt: int, answer: int, number: int) -> Request:
    return Request(0.0, stacks, number, number, 0, prompt, answer)


def _rate(run: Run) -> float:
    return sum(request.answer for request in run.requests) / run.end


def _hits(run: Run) -> float:
    return statistics.fmean(request.hits for request in run.requests)
