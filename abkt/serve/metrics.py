"""Counters and gauges of a service, in the text format of Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from abkt.records import OUTCOMES, STAGES
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.service import ServiceStatus

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """The metrics of a service; thread-safe. All names begin with abkt_; times are in seconds."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("abkt_requests", "Requests that are done, by outcome.", ["outcome"], registry=registry)
        self._tokens = Counter("abkt_tokens", "Prompt and output tokens of completed requests.", ["kind"], registry=registry)
        self._bytes = Counter("abkt_kv_bytes", "KV bytes of completed requests: raw, and on the wire.", ["kind"], registry=registry)
        self._ttft = Histogram(
            "abkt_ttft_seconds",
            "Time to first token: from arrival to the first token of the decode worker.",
            buckets=SECONDS,
            registry=registry,
        )
        self._tpot = Histogram("abkt_tpot_seconds", "Time per output token after the first.", buckets=STEP_SECONDS, registry=registry)
        self._e2e = Histogram("abkt_e2e_seconds", "End-to-end time: from arrival to the last token.", buckets=SECONDS, registry=registry)
        self._stages = Counter(
            "abkt_stage_exposed_seconds", "Time that requests waited for each stage alone.", ["stage"], registry=registry
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)

    def done(self, request: OpenRequest) -> None:
        """Count a request that is done."""
        record = request.record
        assert record is not None
        self._requests.labels(record.outcome).inc()
        if record.outcome != "completed":
            return
        self._tokens.labels("prompt").inc(record.isl)
        self._tokens.labels("output").inc(record.osl)
        self._bytes.labels("raw").inc(record.raw_bytes)
        self._bytes.labels("wire").inc(record.wire_bytes)
        self._ttft.observe(record.ttft_s)
        self._e2e.observe(record.e2e_s)
        if not math.isnan(record.tpot_s):
            self._tpot.observe(record.tpot_s)
        for stage in STAGES:
            self._stages.labels(stage).inc(max(0.0, getattr(record, f"{stage}_exposed_s")))

    def text(self, status: ServiceStatus) -> bytes:
        """The text that /metrics returns."""
        registry = CollectorRegistry()
        registry.register(_StatusCollector(status))
        return generate_latest(self._registry) + generate_latest(registry)


class _StatusCollector:
    """The gauges, read from the current status of the service."""

    def __init__(self, status: ServiceStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily("abkt_requests_open", "Requests that are not done.", value=status.open)
        yield GaugeMetricFamily("abkt_requests_waiting", "Open requests that wait for KV memory.", value=status.waiting)
        workers = GaugeMetricFamily("abkt_workers", "Workers that take requests, by role.", labels=["role"])
        workers.add_metric(["prefill"], len(status.prefill))
        workers.add_metric(["decode"], len(status.decode))
        yield workers
        used = GaugeMetricFamily("abkt_kv_used_ratio", "Share of KV memory that is reserved, by decode worker.", labels=["worker"])
        for name, share in status.kv_used.items():
            used.add_metric([name], share)
        yield used
