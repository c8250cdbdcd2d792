"""Counts and times for Prometheus. Each server has its own registry, so that one process may run several."""

from __future__ import annotations

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
        self.requests = Counter(
            "clipadapter_requests", "Requests that were answered.", ["route", "model", "status"], registry=registry
        )
        self.seconds = Histogram(
            "clipadapter_request_seconds",
            "From a request's first byte to its answer.",
            ["route", "model"],
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self.refused = Counter(
            "clipadapter_refused",
            "Requests that were refused because of load or time: queue, slow, memory, deadline.",
            ["reason"],
            registry=registry,
        )
        self.pictures = Counter("clipadapter_pictures", "Pictures that were received.", ["model"], registry=registry)
        self.unreadable = Counter(
            "clipadapter_picture_errors", "Pictures that could not be read.", ["model"], registry=registry
        )
        self.batch_pictures = Histogram(
            "clipadapter_batch_pictures", "Pictures in a batch.", ["model"], buckets=BUCKETS_PICTURES, registry=registry
        )
        self.batch_seconds = Histogram(
            "clipadapter_batch_seconds",
            "Seconds to run a batch.",
            ["model"],
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self.pending = Gauge(
            "clipadapter_queue_pictures",
            "Pictures that were accepted and have no result yet.",
            ["model"],
            registry=registry,
        )
        self.loads = Counter(
            "clipadapter_model_loads",
            "Model files that were loaded, or could not be.",
            ["model", "outcome"],
            registry=registry,
        )

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
