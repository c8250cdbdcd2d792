"""Logs as lines of JSON: what happened to a request, never what was in it."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

LOGGERS = ("clipadapter.serve", "uvicorn", "python_multipart", "py.warnings")
logger = logging.getLogger("clipadapter.serve")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, event, and its facts."""

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


def log_event(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event with facts."""
    logger.log(level, event, extra={"facts": facts})


def log_to_stream(stream: Any, level: int = logging.INFO) -> None:
    """Write the server's logs to a stream, and only there; for the program that owns the process."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for name in LOGGERS:
        logger_of_name = logging.getLogger(name)
        logger_of_name.handlers[:] = [handler]
        logger_of_name.propagate = False
        logger_of_name.setLevel(level if name == "clipadapter.serve" else logging.WARNING)
    # The parser's warnings repeat what a client sent; the client gets them as an answer.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.captureWarnings(True)
