"""Logs as lines of JSON, and metrics for Prometheus: what happened to a request, never what was in it."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

BUCKETS_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BUCKETS_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)
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


class Metrics:
    """The metrics of one server, in a registry of its own: one process may run several."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        counter = partial(Counter, namespace="clipadapter", registry=registry)
        seconds = partial(Histogram, namespace="clipadapter", registry=registry, buckets=BUCKETS_SECONDS)
        by_model = ["model"]
        self.requests = counter("requests", "Requests that were answered.", ["route", "model", "status"])
        self.seconds = seconds("request_seconds", "From a request's first byte to its answer.", ["route", "model"])
        self.refused = counter(
            "refused", "Requests that were refused because of load or time: queue, slow, memory, deadline.", ["reason"]
        )
        self.pictures = counter("pictures", "Pictures that were received.", by_model)
        self.unreadable = counter("picture_errors", "Pictures that could not be read.", by_model)
        self.batch_pictures = seconds("batch_pictures", "Pictures in a batch.", by_model, buckets=BUCKETS_PICTURES)
        self.batch_seconds = seconds("batch_seconds", "Seconds to run a batch.", by_model)
        text = "Pictures that were accepted and have no result yet."
        self.pending = Gauge("queue_pictures", text, by_model, namespace="clipadapter", registry=registry)
        self.loads = counter("model_loads", "Model files that were loaded, or could not be.", ["model", "outcome"])
