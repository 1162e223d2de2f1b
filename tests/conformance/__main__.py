"""What clients of OpenAI's API do with the real server.

    python -m tests.conformance [CLIENT]...

Without a client it asks all, and writes docs/conformance.md, the JSON beside it, and the requests that the
tests replay. Exit code 1 when a client did not get what it asked for.
"""

from __future__ import annotations

import json
import subprocess
from typing import Annotated

import typer

from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.options import DEMO_REGISTRY, application
from benchmarks.instruments.results import machine
from benchmarks.instruments.timing import say
from benchmarks.serving.server_process import running
from tests.conformance import page, recorded
from tests.conformance.clients import CLIENTS, Client
from tests.conformance.installation import Program, installed
from tests.conformance.recorder import recording

SECONDS = 600
"""Most that a script may take."""

NAMES = [client.name for client in CLIENTS]


def main(
    clients: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(NAMES)}; all by default.")
    ] = None,
) -> None:
    """Install foreign clients, each in a folder of its own, and ask the server with each."""
    unknown = sorted(set(clients or ()) - set(NAMES))
    if unknown:
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(NAMES)}")
    programs = {client: installed(client) for client in CLIENTS if not clients or client.name in clients}
    outcomes: dict[Client, dict[str, str]] = {}
    with running(DEMO_REGISTRY) as server, recording(server.url) as recorder:
        for client, program in programs.items():
            recorder.client = client.name
            url = recorder.url if client.replayed else server.url
            outcomes[client] = _asked(program, url, server.model)
            say(f"{client.name} {client.version}: {outcomes[client]}")
    if not clients:
        rows = {c.name: {"version": c.version, "outcomes": found} for c, found in outcomes.items()}
        page.write({"machine": machine(), "clients": rows})
        recorded.save(recorded.distinct(recorder.requests))
    if any(outcome != "ok" for found in outcomes.values() for outcome in found.values()):
        raise typer.Exit(1)


def _asked(program: Program, url: str, model: str) -> dict[str, str]:
    """What the script says; where it says nothing, why, for all that it could have been asked for."""
    try:
        ran = subprocess.run(
            [*program.command, f"{url}/v1", model],
            cwd=ROOT,
            env=program.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        outcomes: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return dict.fromkeys(page.TITLES, f"the script did not end within {SECONDS} s")
    except subprocess.CalledProcessError as error:
        return dict.fromkeys(page.TITLES, f"the script ended with {error.returncode}: {error.stderr[-500:]}")
    if not outcomes.keys() <= page.TITLES.keys():
        raise ValueError(f"{program.command} tells of {list(outcomes)}; known are {', '.join(page.TITLES)}")
    return outcomes


app = application(main)

if __name__ == "__main__":
    app()
