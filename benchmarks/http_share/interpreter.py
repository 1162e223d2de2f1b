"""Who has the interpreter, and for what: stacks of all threads, sampled from outside by py-spy."""

from __future__ import annotations

import asyncio
import os
import re
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from benchmarks.http_share.threads import ENCODERS, ENGINE, LOOP, OTHERS, kind_of
from brainstacks.errors import ConfigError

RATE = 200
"""Looks a second. None stops the process: after a stop all its threads, those that sleep too, want a core."""

DETOKENIZING, STEP = "detokenising", "the step itself"
TEMPLATES, ELSE = "chat template and tokenizer", "the rest"
VALIDATION, EVENTS, HTTP, METRICS = (
    "pydantic, FastAPI, parsing",
    "events: SSE and JSON",
    "uvicorn, h11, sockets",
    "metrics and log",
)
ASYNCIO = "asyncio: the loop, queues, tasks"

_OF_LOOP = {
    TEMPLATES: ("brainstacks/tokenizer", "brainstacks/chat_template", "server/encoder", "jinja2/", "anyio/"),
    VALIDATION: (
        *("pydantic", "fastapi/", "server/json_body", "server/schemas/", "server/composition"),
        *("json/decoder", "server/auth", "server/body_limit", "server/api/context", "server/rate_limit"),
    ),
    METRICS: ("prometheus_client/", "server/metrics", "server/log", "server/summary", "logging/"),
    EVENTS: ("json/encoder", "json/__init__", "server/sse", "server/api/", "server/reader", "server/replies"),
    HTTP: (
        "uvicorn/",
        "h11/",
        "httptools",
        "starlette/",
        "server/request_context",
        "asyncio/selector_events",
    ),
    ASYNCIO: ("asyncio/", "selectors", "brainstacks/engine/"),
}
"""Part of the event loop's work -> how its files' names begin. A stack counts by the innermost of its frames
that is in one of them: what a library does is the caller's where it stands in none."""

PARTS = (
    *((ENGINE, part) for part in (STEP, DETOKENIZING)),
    *((LOOP, part) for part in (*_OF_LOOP, ELSE)),
    (ENCODERS, TEMPLATES),
    (OTHERS, ELSE),
)
"""(kind of thread, part), in the order of the table."""

_FRAME = re.compile(r"^.* \((.*?)(?::\d+)?\)$")

Part = tuple[str, str]


def part_of(stack: str) -> Part:
    """Of a stack as py-spy writes it: `thread (17): NAME;outermost (file:line);...;innermost (file:line)`."""
    thread, *frames = stack.split(";")
    files = [found[1] for frame in frames if (found := _FRAME.match(frame))]
    kind = kind_of(thread.partition(": ")[2])
    if kind == ENGINE:
        return kind, DETOKENIZING if any("engine/detokenizer" in file for file in files) else STEP
    if kind == ENCODERS:
        return kind, TEMPLATES
    if kind != LOOP:
        return OTHERS, ELSE
    for file in reversed(files):
        for part, beginnings in _OF_LOOP.items():
            if file.startswith(beginnings):
                return LOOP, part
    return LOOP, ELSE


def shares(lines: Iterable[str], looks: int) -> dict[Part, float]:
    """Part -> of all looks, those that found it.

    Args:
        lines: a stack and how often it was seen, in each.
    """
    found: Counter[Part] = Counter()
    for line in lines:
        stack, _, times = line.rpartition(" ")
        found[part_of(stack)] += int(times)
    return {part: found[part] / looks for part in PARTS}


async def sampled(seconds: int, *, holding: bool) -> dict[Part, float]:
    """Part -> the share of the next `seconds` in which a thread of this process was at it.

    Args:
        holding: held the interpreter's lock; else, was on a core or ready for one, with the lock or without.

    Raises:
        ConfigError: py-spy is not installed, or may not look.
    """
    program = Path(sysconfig.get_path("scripts")) / "py-spy"
    if not program.exists():
        raise ConfigError(
            "py-spy is not installed; install the extra bench, or give --profile-seconds 0, which leaves out "
            "who has the interpreter"
        )
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "stacks"
        options = (
            f"--duration {seconds} --rate {RATE} --format raw --threads --function --nonblocking".split()
        )
        process = await asyncio.create_subprocess_exec(
            *(str(program), "record", "--pid", str(os.getpid()), *options, *(["--gil"] if holding else [])),
            *("--output", str(output)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said, _ = await process.communicate()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
        if process.returncode:
            raise ConfigError(
                f"py-spy ended with {process.returncode}: {said.decode().strip()[-300:]}. It has to be "
                "allowed to look into this process (as root, or by the kernel's ptrace_scope); "
                "--profile-seconds 0 leaves out who has the interpreter"
            )
        return shares(output.read_text().splitlines(), RATE * seconds)
