"""The image is made of what is here, runs as nobody in particular, and says whether it lives."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic_settings import CliApp

from server.settings import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
LINES = [line.strip() for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]


def of(instruction: str) -> list[str]:
    return [line.split(None, 1)[1] for line in LINES if line.startswith(f"{instruction} ")]


def users_at_the_end() -> list[str]:
    """Whom each stage runs as that names one."""
    stages = re.split(r"^FROM ", "\n".join(LINES), flags=re.MULTILINE)
    named = (re.findall(r"^USER (\S+)$", stage, re.MULTILINE) for stage in stages)
    return [users[-1] for users in named if users]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {part for line in of("COPY") for part in line.split()[:-1] if not part.startswith("--")}
    assert copied == allowed
    for name in copied:
        assert (ROOT / name).exists(), name


def test_the_command_is_one_that_the_server_takes() -> None:
    (command,) = of("CMD")
    program, *flags = json.loads(command)
    assert program == "brainstacks-serve"
    settings = CliApp.run(Settings, cli_args=flags)
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert settings.registry in of("VOLUME")[0]


def test_it_is_not_root_has_a_health_check_and_both_targets() -> None:
    *_, user = of("USER")
    assert user not in ("root", "0")
    assert all(last not in ("root", "0") for last in users_at_the_end())
    assert "/health" in of("HEALTHCHECK")[0]
    assert {"cpu", "cuda", "ray"} <= {line.split(" AS ")[1] for line in of("FROM")}
    for line in of("ENV"):
        name, _, value = line.partition("=")
        assert Settings.model_validate({name.removeprefix("BRAINSTACKS_").lower(): value}).device == value
