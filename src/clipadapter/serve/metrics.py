"""Counts and times for Prometheus; a registry for each server, so that several may live in a process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """All that is counted."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "clipadapter_requests", "Requests that were answered.", ["route", "model", "status"], registry=registry
        )
        self._seconds = Histogram(
            "clipadapter_request_seconds",
            "From a request's first byte to its answer.",
            ["route", "model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "clipadapter_refused",
            "Requests that were refused though nothing was wrong with them: queue, memory, deadline, bodies, rate.",
            ["reason"],
            registry=registry,
        )
        self._pictures = Counter("clipadapter_pictures", "Pictures that came.", ["model"], registry=registry)
        self._bad = Counter(
            "clipadapter_picture_errors", "Pictures that could not be read.", ["model"], registry=registry
        )
        self._batches = Histogram(
            "clipadapter_batch_pictures", "Pictures that ran at once.", ["model"], buckets=PICTURES, registry=registry
        )
        self._running = Histogram(
            "clipadapter_batch_seconds", "Running a batch.", ["model"], buckets=SECONDS, registry=registry
        )
        self._waiting = Gauge(
            "clipadapter_queue_pictures", "Pictures taken in and not answered.", ["model"], registry=registry
        )
        self._loads = Counter(
            "clipadapter_model_loads",
            "Files that were loaded, or could not be.",
            ["model", "outcome"],
            registry=registry,
        )

    def answered(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route, model).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request that was refused for a reason of the server."""
        self._refused.labels(reason).inc()

    def saw(self, model: str, pictures: int, bad: int) -> None:
        """Count the pictures of a request."""
        self._pictures.labels(model).inc(pictures)
        self._bad.labels(model).inc(bad)

    def loaded(self, model: str, outcome: str) -> None:
        """Count a file: "loaded" or "failed"."""
        self._loads.labels(model, outcome).inc()

    def of_model(self, name: str) -> ModelMetrics:
        """What a model's batches report to."""
        return ModelMetrics(self._batches.labels(name), self._running.labels(name))

    def watch_queue(self, name: str, waiting: Callable[[], float]) -> None:
        """Ask this for the length of a model's queue."""
        self._waiting.labels(name).set_function(waiting)

    def forget_queue(self, name: str) -> None:
        """A model that is served no more has none."""
        self._waiting.remove(name)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)


class ModelMetrics:
    """Those of one model's batches.

    Args:
        pictures: histogram of their sizes.
        seconds: histogram of their times.
    """

    def __init__(self, pictures: Histogram, seconds: Histogram) -> None:
        self._pictures, self._seconds = pictures, seconds

    def ran(self, pictures: int, seconds: float) -> None:
        """Count a batch."""
        self._pictures.observe(pictures)
        self._seconds.observe(seconds)
