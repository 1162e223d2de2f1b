"""`litellm --config ...`: the proxy as users start it, asked by the `openai` that it comes with."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conformance.scripts.openai_checks import OpenAIChecks
from tests.conformance.scripts.questions import KEY, URL

MASTER_KEY = f"sk-{secrets.token_hex(16)}"
"""The proxy does not start without one."""
SECONDS = 120
"""Most that its start may take."""


@contextmanager
def proxy() -> Iterator[str]:
    """The proxy in front of every model of the server; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    every_model = {
        "model_name": "*",
        "litellm_params": {"model": "openai/*", "api_base": URL, "api_key": KEY},
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"model_list": [every_model]}))  # JSON is YAML
        program = Path(sys.executable).parent / "litellm"
        command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        log = Path(folder) / "log"
        with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=folder) as process:
            try:
                _wait(f"http://127.0.0.1:{port}", process, log)
                yield f"http://127.0.0.1:{port}/v1"
            finally:
                process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RuntimeError: it ended, or took too long; with the end of its log."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health/liveliness", timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"the proxy did not start: {log.read_text()[-1000:]}")


os.environ["LITELLM_MASTER_KEY"] = MASTER_KEY
with proxy() as url:
    OpenAIChecks(url, MASTER_KEY).report()
