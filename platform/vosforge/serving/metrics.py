"""What a server tells Prometheus of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COUNTED = {
    "opened": "Sessions opened.",
    "expired": "Sessions closed because nobody asked for them.",
    "frames": "Frames taken, those of clips among them.",
    "rounds": "Rounds of interactive sessions.",
    "clips": "Whole clips segmented.",
    "replayed": "Sessions brought back from the journal.",
    "differing": "Answers that came out otherwise when they were replayed.",
    "roll_overs": "Changes to a newer model version.",
    "batches": "Forwards of streamed frames.",
    "steps": "Frames in these forwards.",
}
_HELD = {"sessions": "Sessions open.", "bytes": "Bytes that sessions and clips hold."}
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


class Requests:
    """Times of requests by method, route and status."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "vosforge_request_seconds",
            "Seconds from a request's head to its answer.",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=_SECONDS,
        )

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        # Any word is a method to HTTP; each would be a series.
        self._seconds.labels(method if method in _METHODS else "other", route, str(status)).observe(seconds)


def exposition(requests: Requests, stats: Mapping[int, Mapping[str, Any] | None]) -> tuple[bytes, str]:
    """The text of `/metrics`, and its media type.

    Args:
        requests: what this process counted.
        stats: slot -> `SessionStore.stats`, None of those that do not answer.
    """
    registry = CollectorRegistry()
    registry.register(_Replicas(stats))
    return generate_latest(requests.registry) + generate_latest(registry), CONTENT_TYPE_LATEST


class _Replicas(Collector):
    def __init__(self, stats: Mapping[int, Mapping[str, Any] | None]):
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("vosforge_replica_up", "Whether a replica answers.", labels=("slot",))
        for slot, found in self._stats.items():
            up.add_metric((str(slot),), float(found is not None))
        yield up
        answering = {str(slot): found for slot, found in self._stats.items() if found is not None}
        for kinds, family in ((_COUNTED, CounterMetricFamily), (_HELD, GaugeMetricFamily)):
            for name, told in kinds.items():
                metric = family(f"vosforge_{name}", told, labels=("slot",))
                for slot, found in answering.items():
                    metric.add_metric((slot,), found[name])
                yield metric
        versions = GaugeMetricFamily(
            "vosforge_model", "1 for the version that new sessions get.", labels=("slot", "version")
        )
        for slot, found in answering.items():
            versions.add_metric((slot, found["model"]), 1)
        yield versions
