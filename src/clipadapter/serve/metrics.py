"""Counts and times for Prometheus. Each server has its own registry, so that one process may run several."""

from __future__ import annotations

from functools import partial

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

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
