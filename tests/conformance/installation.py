"""Clients in folders of their own under `build/`, kept from run to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.timing import say
from tests.conformance.clients import Client

FOLDER = ROOT / "build" / "conformance"
SCRIPTS = Path(__file__).parent / "scripts"
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "TOKENIZERS_PARALLELISM": "false"}
"""What keeps clients from fetching files of their own while they run."""


@dataclass(frozen=True)
class Program:
    """The script of an installed client; it is started in `ROOT`, and given the server's URL and the base."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


def installed(client: Client) -> Program:
    """Install the client, unless it is there already.

    Raises:
        subprocess.CalledProcessError: pip or npm failed.
    """
    # One folder for all that are installed from the same.
    folder = FOLDER / "+".join(client.packages).replace("/", "-")
    whole = folder / ".installed"
    if not whole.exists():
        say(f"{client.name}: installing {', '.join(client.packages)}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _install(client, folder)
        whole.touch()
    module, environment = f"tests.conformance.scripts.{client.script}", {**os.environ, **QUIET}
    match client.home:
        case "python":
            return Program((str(folder / "bin" / "python"), "-m", module), environment)
        case "node":
            for script in SCRIPTS.glob("*.mjs"):  # node looks for packages beside the file that imports them
                shutil.copy(script, folder)
            return Program(("node", str(folder / f"{client.script}.mjs")), environment)
        case "project":
            return Program((sys.executable, "-m", module), {**environment, "PYTHONPATH": str(folder)})


def _install(client: Client, folder: Path) -> None:
    pip = ("-m", "pip", "install", "--quiet")
    match client.home:
        case "python":
            venv.create(folder, with_pip=True)
            subprocess.run([folder / "bin" / "python", *pip, *client.packages], check=True)
        case "node":
            (folder / "package.json").write_text('{"private": true}\n')
            subprocess.run(["npm", "install", "--silent", *client.packages], cwd=folder, check=True)
        case "project":
            subprocess.run([sys.executable, *pip, "--target", folder, *client.packages], check=True)
