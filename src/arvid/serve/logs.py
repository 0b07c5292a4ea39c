"""Structured logs: one JSON object per line, with the id of the request it belongs to.

Knows: the form of a line. Does not know: where lines go (the command line says so), secrets: none may be told.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

LOGGER = logging.getLogger("arvid.serve")
request_id: ContextVar[str] = ContextVar("request_id", default="")


def say(event: str, level: int = logging.INFO, **told: Any) -> None:
    """Log an event with plain data."""
    LOGGER.log(level, event, extra={"told": told})


class Lines(logging.Formatter):
    """Records as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if mark := request_id.get():
            line["request_id"] = mark
        line.update(record.__dict__.get("told", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
