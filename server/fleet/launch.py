"""`brainstacks-serve --replicas N`: a fleet on this machine, or on the cluster at RAY_ADDRESS."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from types import FrameType

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions

from brainstacks.errors import ConfigError
from server.fleet.deployment import NAME, deployed
from server.settings import Settings

log = logging.getLogger("brainstacks.server")

ENTRANCE = "server.fleet.entrance.middlewares"
VARIABLES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": ENTRANCE,
    "RAY_SERVE_LOG_TO_STDERR": "0",  # its own log is in files; ours is told here
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # of Ray's 5 a busy machine needs more
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Of Ray, which reads them where it starts; the caller's own win."""


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT; then running requests have `drain_timeout`.

    Raises:
        ConfigError: the replicas cannot be started.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    here = "RAY_ADDRESS" not in os.environ
    if not here:  # Ray goes on trying for minutes
        log.info("joining the cluster at RAY_ADDRESS, %s", os.environ["RAY_ADDRESS"])
    over, port = threading.Event(), settings.port or _free_port(settings.host)
    try:
        ray.init(
            namespace=NAME,
            log_to_driver=True,
            logging_level=logging.WARNING,
            include_dashboard=False if here else None,  # of a cluster that is there it is not ours
        )
        serve.start(http_options=HTTPOptions(host=settings.host, port=port))
        _listen(over)
        serve.run(deployed(settings), name=NAME, route_prefix="/")
        log.info("running on http://%s:%d, replicas: %d", settings.host, port, settings.replicas)
        over.wait()
        log.info("ending: running requests have %.0f s", settings.drain_timeout)
    except (RuntimeError, ConnectionError, RayError) as error:
        raise ConfigError(f"the replicas cannot be started: {error}") from None
    finally:
        if ray.is_initialized():
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _free_port(host: str) -> int:
    """One that nobody has at this moment: Ray Serve wants to be told."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.bind((host, 0))
        port: int = one.getsockname()[1]
        return port


def _listen(over: threading.Event) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
