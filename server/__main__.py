"""`python -m server`: open the engine, serve it, drain it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from brainstacks.engine.interface import Engine
from brainstacks.errors import BrainstacksError, ConfigError
from brainstacks.stacks.document import printable
from server import log
from server.api.health import server_version
from server.app import create_app
from server.check import check
from server.connections import BACKLOG, limited
from server.drain import DrainingServer
from server.help import help_text
from server.opening import engine_config, open_engine, settle
from server.settings import Settings
from server.tracing import open_tracing
from server.uploads import check_upload_dir, remove_leftovers

logger = logging.getLogger("brainstacks.server")

BAD_USAGE = 2
CANNOT_START = 1
ENGINE_ENDED = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM.

    Exit code 0 after a drain, 1 when it cannot start or `--check` finds something wrong, 2 for wrong options,
    3 when the engine can compute no more, so that a supervisor starts it anew.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(help_text())
        raise SystemExit(0)
    try:
        settings = CliApp.run(Settings, cli_args=given)
        config = engine_config(settings)
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            flag = "--" + str(item["loc"][0]).replace("_", "-") if item["loc"] else "options"
            print(f"brainstacks-serve: {flag}: {item['msg']}", file=sys.stderr)
        raise SystemExit(BAD_USAGE) from None
    except ConfigError as error:
        print(f"brainstacks-serve: {error.message}", file=sys.stderr)
        raise SystemExit(BAD_USAGE) from None
    log.configure(settings.log_format)
    logger.info("brainstacks %s: %s", server_version(), settings.shown())
    if settings.replicas is not None and not settings.check:  # a check is of what each would serve
        raise SystemExit(run_fleet(settings))
    try:
        check_upload_dir(settings)
        engine = open_engine(settings, config)
    except BrainstacksError as error:
        print(f"brainstacks-serve: {printable(error.message)}", file=sys.stderr)
        raise SystemExit(CANNOT_START) from None
    if settings.check:
        raise SystemExit(0 if asyncio.run(check(engine)) else CANNOT_START)
    settle()
    if not asyncio.run(serve(engine, settings)):
        _leave(engine.status.model.device)


def run_fleet(settings: Settings) -> int:
    """Replicas behind Ray Serve until SIGTERM; the exit code."""
    try:
        from server.fleet.launch import run
    except ImportError as error:
        print(
            f"brainstacks-serve: --replicas needs Ray Serve ({error}): pip install 'brainstacks[ray]'",
            file=sys.stderr,
        )
        return CANNOT_START
    try:
        run(settings)
    except BrainstacksError as error:
        print(f"brainstacks-serve: {printable(error.message)}", file=sys.stderr)
        return CANNOT_START
    return 0


def _leave(device: str) -> NoReturn:
    """End with `ENGINE_ENDED`. To free what was on a GPU that is lost fails, and what fails there aborts the
    process with another code, so nothing is freed."""
    if device != "cpu":
        logging.shutdown()
        os._exit(ENGINE_ENDED)
    raise SystemExit(ENGINE_ENDED)


async def serve(engine: Engine, settings: Settings) -> bool:
    """Serve `engine` until a signal, then drain and close it; or until it ends by itself.

    Returns:
        whether it ended as it was asked to.
    """
    remove_leftovers(settings)
    server = make_server(engine, settings)
    following = asyncio.create_task(_follow(engine, settings.registry_poll))
    watching = asyncio.create_task(_watch(engine, server))
    try:
        await server.serve()
        return not watching.done()
    finally:
        following.cancel()
        watching.cancel()
        await engine.close()


async def _watch(engine: Engine, server: DrainingServer) -> None:
    """Stop when the engine has ended by itself: nothing is to be drained then."""
    await engine.ended()
    logger.critical("the engine has ended: %s; this process ends too", engine.status.problem())
    server.should_exit = True


async def _follow(engine: Engine, seconds: float) -> None:
    if seconds:
        await engine.stacks.follow(seconds)


def make_server(engine: Engine, settings: Settings) -> DrainingServer:
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "server_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": 5,  # after the drain: only replies that are still on the wire
        "h11_max_incomplete_event_size": 2 * settings.max_header_bytes,
        "http": limited(settings.max_connections, settings.header_timeout),
        "backlog": BACKLOG,
        "loop": "asyncio",  # whatever else is installed: what comes with Ray must not change what serves
        "log_config": None,
        "access_log": False,  # `RequestContext` writes it
    }
    app = create_app(engine, settings, open_tracing(settings.otlp_endpoint))
    config = uvicorn.Config(app, **options)
    return DrainingServer(config, engine, settings.drain_timeout, app.state.context.keys.reload)


if __name__ == "__main__":
    main()
