"""Replicas, domains and routers, simulated: what affinity to stacks is worth, and where it stops to matter.

    python -m benchmarks.scaling

No replica runs: each is a model of the engine's rules with constants of committed measurements
(`profile.py`), and is compared with what was measured (`validation.py`).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.instruments import options
from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.results import RESULTS, machine, write_results
from benchmarks.instruments.timing import Progress
from benchmarks.scaling import tables
from benchmarks.scaling.lengths import lengths
from benchmarks.scaling.picture import picture
from benchmarks.scaling.profile import BUCKET, DEMO, DISK, R16, load_profile
from benchmarks.scaling.replica import Room
from benchmarks.scaling.routers import ROUTERS
from benchmarks.scaling.study import (
    PATIENCE_S,
    UNIT_DOMAINS,
    Cell,
    Setting,
    grid,
    loads_within_patience,
    one_replica,
)
from benchmarks.scaling.validation import compare
from brainstacks.durable import atomic_write

NAME = "scaling"
GRID_ROUTERS = ("random", "round robin", "two choices", "hashed", "affinity")
QUESTION_DOMAINS, QUESTION_REPLICAS = 50, 8


def questions(setting: Setting) -> dict[str, Setting]:
    """Where the stacks are that a replica has no room for."""
    no_host = Room(setting.room.device, 0)
    far, demo = load_profile(R16, BUCKET), load_profile(DEMO)
    return {
        f"{R16}, host memory keeps {setting.room.host}": setting,
        f"{R16}, from {DISK} each time": replace(setting, room=no_host),
        f"{R16}, from a {BUCKET} each time": replace(setting, room=no_host, profile=far),
        f"{DEMO}, host memory keeps {setting.room.host}": replace(setting, profile=demo),
        f"{DEMO}, from {DISK} each time": replace(setting, room=no_host, profile=demo),
    }


def main(
    replicas: Annotated[
        str, typer.Option(help="Of the fleets, separated by commas.")
    ] = "1,2,4,8,16,32,64,100",
    domains: Annotated[str, typer.Option(help="Of the registries, separated by commas.")] = "10,50,200,1000",
    room: Annotated[int, typer.Option(min=3, help="Stacks that each replica's device has room for.")] = 8,
    load: Annotated[
        float, typer.Option(min=0.01, help="Requests a second, over what a replica with all stacks can do.")
    ] = 0.5,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each replica in a simulation.")] = 100,
    least: Annotated[int, typer.Option(min=8, help="Requests of a fleet at least.")] = 1000,
    seeds: Annotated[int, typer.Option(min=2, max=10, help="Simulations of each case.")] = 4,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
    image: Annotated[Path, typer.Option("--picture", help="File of the picture.")] = ROOT
    / "docs"
    / "scaling.svg",
) -> None:
    """Fleets of replicas under Zipf's law, by router: latencies, throughput, loads, hits, balance.

    A quick look: python -m benchmarks.scaling --replicas 1,8 --domains 50 --seeds 2 --least 200
    --requests 20 --output build/benchmarks --picture build/scaling.svg
    """
    counts, registries = (
        options.positive_list(replicas, "replicas"),
        options.positive_list(domains, "domains"),
    )
    facts = machine()
    profile = load_profile(R16)
    setting = Setting(
        profile, Room(room, profile.host_room), lengths(), load, requests, least, range(seed, seed + seeds)
    )
    unit = one_replica(profile, setting.lengths)
    cells: list[Cell] = []
    asked = questions(setting)
    progress = Progress(len(counts) * len(registries) * len(GRID_ROUTERS) + len(asked) * len(ROUTERS))
    for cell in grid(setting, unit, counts, registries, GRID_ROUTERS):
        cells.append(cell)
        progress.done(f"{cell.domains} domains, {cell.replicas} replicas, {cell.router}")
    most = loads_within_patience(asked, QUESTION_REPLICAS, QUESTION_DOMAINS, [*ROUTERS], progress.done)
    compared = compare()
    text = (
        f"A simulation; its constants are measured ones of one machine, where nothing else is said. {seeds} "
        "seeds; brackets are 95% intervals by Student's t. Every router gets the same requests.\n\n"
        f"{tables.constants(profile)}\n\n"
        f"A replica that has all stacks of {UNIT_DOMAINS} domains there does {unit:.3g} requests a second; "
        f"each is asked for {load:g} of that. Its device has room for {room} stacks, its host memory for "
        f"{setting.room.host} more.\n\n{tables.cells_table(cells)}\n\n"
        f"Requests a second of each of {QUESTION_REPLICAS} replicas, {QUESTION_DOMAINS} domains, room for "
        f"{room}, at which p95 of the time to first token stays within {PATIENCE_S:g} s:\n\n"
        f"{tables.patience_table(most)}\n\n"
        f"Simulated against measured:\n\n{tables.compared_table(compared)}"
    )
    document: dict[str, Any] = {
        "machine": facts,
        "settings": {
            "replicas": counts, "domains": registries, "room": room, "host_room": setting.room.host,
            "load": load, "requests": requests, "least": least, "seeds": [*setting.seeds],
        },
        "profile": asdict(profile),
        "requests_a_second": {"one_replica": unit, "asked_of_each": load * unit},
        "cells": [
            {
                "replicas": cell.replicas, "domains": cell.domains, "router": cell.router,
                **{name: one.to_dict() for name, one in cell.figures.items()},
            }
            for cell in cells
        ],
        "most_load": {
            name: {router: one.to_dict() for router, one in each.items()} for name, each in most.items()
        },
        "compared": [asdict(one) | {"ratio": one.ratio} for one in compared],
    }  # fmt: skip
    image.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(image, picture(cells))
    write_results(NAME, document, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
