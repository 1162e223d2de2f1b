"""The log: one line a record, for people or as JSON; and the access log, which is a record a request."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from server.summary import Summary

access = logging.getLogger("brainstacks.access")

Format = Literal["text", "json"]

FIELDS = (
    "request_id",
    "key",
    "client",
    "route",
    "status",
    "duration",
    "error",
    "trace_id",
    "composition",
    "prompt_tokens",
    "completion_tokens",
    "finish_reason",
)
"""What a record may have besides its message, where there is something to tell; `duration` is in seconds."""

_FILE = re.compile(r'(?<=File ")[^"]+')


class _Formatter(logging.Formatter):
    """Of both formats: traces name files as Python finds them, not as this machine holds them."""

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return _FILE.sub(lambda found: _importable(found[0]), super().formatException(ei))


class TextFormatter(_Formatter):
    """`2026-11-30 10:00:00,000 INFO brainstacks.access: GET /health 200 request_id=... duration=0.001`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return " ".join((super().formatMessage(record), *(f"{k}={v}" for k, v in _fields(record).items())))


class JsonFormatter(_Formatter):
    """An object a line: time (UTC), level, logger, message, `FIELDS`, and `exception`, where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        shown: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            shown["exception"] = self.formatException(record.exc_info)
        return json.dumps(shown, default=str)


def configure(chosen: Format) -> None:
    """Have every logger of the process write to standard error in one format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if chosen == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)


def write(summary: Summary) -> None:
    """A request's line in the access log."""
    access.info("%s %s %d", summary.method, summary.path, summary.status, extra=summary.fields())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: vars(record)[name] for name in FIELDS if name in vars(record)}


def _importable(file: str) -> str:
    """`torch/nn/modules/module.py` of a file in any place that modules come from; else its name alone."""
    path = Path(file)
    roots = [Path(root) for root in sys.path if root and path.is_relative_to(root)]
    return str(path.relative_to(max(roots, key=lambda root: len(root.parts)))) if roots else path.name
