"""What a service has done, as Prometheus' text."""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from abkt.records import OUTCOMES, STAGES
from abkt.serve.frontend.ticket import OpenRequest
from abkt.serve.service import Status

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """Thread-safe, as prometheus_client is. Names begin with abkt_, and times are in seconds."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("abkt_requests", "Requests that are done.", ["outcome"], registry=registry)
        self._tokens = Counter("abkt_tokens", "Tokens of completed requests.", ["kind"], registry=registry)
        self._bytes = Counter("abkt_kv_bytes", "KV of completed requests: as it is, and on the wire.", ["kind"], registry=registry)
        self._ttft = Histogram("abkt_ttft_seconds", "To the first token of the decode side.", buckets=SECONDS, registry=registry)
        self._tpot = Histogram("abkt_tpot_seconds", "Per token after that.", buckets=STEP_SECONDS, registry=registry)
        self._e2e = Histogram("abkt_e2e_seconds", "From arrival to the last token.", buckets=SECONDS, registry=registry)
        self._stages = Counter("abkt_stage_exposed_seconds", "What requests waited for each stage alone.", ["stage"], registry=registry)
        for outcome in OUTCOMES:
            self._requests.labels(outcome)

    def done(self, ticket: OpenRequest) -> None:
        record = ticket.record
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

    def text(self, status: Status) -> bytes:
        registry = CollectorRegistry()
        registry.register(_Now(status))
        return generate_latest(self._registry) + generate_latest(registry)


class _Now:
    """How things stand, as a collector."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily("abkt_requests_open", "Requests that are not done.", value=status.open)
        yield GaugeMetricFamily("abkt_requests_waiting", "Of those, the ones that wait for memory to decode in.", value=status.waiting)
        workers = GaugeMetricFamily("abkt_workers", "Workers that take requests.", labels=["role"])
        workers.add_metric(["prefill"], len(status.prefill))
        workers.add_metric(["decode"], len(status.decode))
        yield workers
        used = GaugeMetricFamily("abkt_kv_used_ratio", "KV memory promised.", labels=["worker"])
        for name, share in status.kv_used.items():
            used.add_metric([name], share)
        yield used
