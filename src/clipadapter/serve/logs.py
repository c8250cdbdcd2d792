"""Logs as lines of JSON: what happened to a request, never what was in it."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

LOGGERS = ("clipadapter.serve", "uvicorn", "python_multipart", "py.warnings")
logger = logging.getLogger("clipadapter.serve")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, event, and its facts.

    >>> record = logging.LogRecord("x", logging.INFO, "", 0, "loaded", None, None)
    >>> record.created, record.facts = 0.0, {"model": "pets"}
    >>> JsonLines().format(record)
    '{"time": "1970-01-01T00:00:00.000Z", "level": "info", "event": "loaded", "model": "pets"}'
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def tell(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event with facts."""
    logger.log(level, event, extra={"facts": facts})


def write_to(stream: Any, level: int = logging.INFO) -> None:
    """Write the server's logs to a stream, and only there; for the program that owns the process."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in LOGGERS:
        one = logging.getLogger(name)
        one.handlers[:] = [handler]
        one.propagate = False
        one.setLevel(level if name == "clipadapter.serve" else logging.WARNING)
    # The parser's complaints repeat what a client sent; the client is told.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.captureWarnings(True)
