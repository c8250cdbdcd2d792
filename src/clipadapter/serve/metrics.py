"""Counts and times for Prometheus. Each server has its own registry, so that one process may run several."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

BUCKETS_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BUCKETS_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server."""

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
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "clipadapter_refused",
            "Requests that were refused because of load or time: queue, slow, memory, deadline, bodies, rate.",
            ["reason"],
            registry=registry,
        )
        self._pictures = Counter("clipadapter_pictures", "Pictures that were received.", ["model"], registry=registry)
        self._unreadable = Counter(
            "clipadapter_picture_errors", "Pictures that could not be read.", ["model"], registry=registry
        )
        self._batch_pictures = Histogram(
            "clipadapter_batch_pictures", "Pictures in a batch.", ["model"], buckets=BUCKETS_PICTURES, registry=registry
        )
        self._batch_seconds = Histogram(
            "clipadapter_batch_seconds",
            "Seconds to run a batch.",
            ["model"],
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self._pending = Gauge(
            "clipadapter_queue_pictures",
            "Pictures that were accepted and have no result yet.",
            ["model"],
            registry=registry,
        )
        self._loads = Counter(
            "clipadapter_model_loads",
            "Model files that were loaded, or could not be.",
            ["model", "outcome"],
            registry=registry,
        )

    def count_request(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route, model).observe(seconds)

    def count_refusal(self, reason: str) -> None:
        """Count a request that was refused because of load or time."""
        self._refused.labels(reason).inc()

    def count_pictures(self, model: str, pictures: int, unreadable: int) -> None:
        """Count the pictures of a request."""
        self._pictures.labels(model).inc(pictures)
        self._unreadable.labels(model).inc(unreadable)

    def count_load(self, model: str, outcome: str) -> None:
        """Count a model file; the outcome is "loaded" or "failed"."""
        self._loads.labels(model, outcome).inc()

    def for_model(self, name: str) -> ModelMetrics:
        """The metrics of one model's batches."""
        return ModelMetrics(self._batch_pictures.labels(name), self._batch_seconds.labels(name))

    def add_queue(self, name: str, pending: Callable[[], float]) -> None:
        """Report the length of a model's queue, read from a function."""
        self._pending.labels(name).set_function(pending)

    def remove_queue(self, name: str) -> None:
        """Stop to report the queue of a model that is no longer served."""
        self._pending.remove(name)

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class ModelMetrics:
    """The metrics of one model's batches.

    Args:
        pictures: histogram of their sizes.
        seconds: histogram of their times.
    """

    def __init__(self, pictures: Histogram, seconds: Histogram) -> None:
        self._pictures, self._seconds = pictures, seconds

    def count_batch(self, pictures: int, seconds: float) -> None:
        """Count a batch."""
        self._pictures.observe(pictures)
        self._seconds.observe(seconds)
