"""The counts of stats.py as vLLM's log line and as Prometheus metrics, by peer."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from abkt.connect.vllm import stats

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BUCKETS = {
    "received_distortion": (0.0, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 0.1),
    **dict.fromkeys(("exposed_s", "offer_s", "arrive_s", "write_s", "report_s", "encode_s", "held_s"), SECONDS),
    "received_cut": tuple(range(0, 65, 4)),
}
BY_PEER = ("received_bytes", "received_raw_bytes", "sent_bytes")


class AbktStats(KVConnectorStats):
    """What workers count, as vLLM adds it up. data: as stats.empty() has it."""

    def reset(self) -> None:
        self.data = stats.empty()

    def aggregate(self, other: KVConnectorStats) -> AbktStats:
        self.data = stats.added(self.data or stats.empty(), other.data or stats.empty())
        return self

    def reduce(self) -> dict[str, Any]:
        return stats.reduced(self.data)

    def is_empty(self) -> bool:
        return not self.data or stats.is_empty(self.data)


class AbktPromMetrics(KVConnectorPromMetrics):
    """vllm:abkt_… metrics. Counters of bytes have a label `peer`."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._histograms = {
            name: self._histogram_cls(name=f"vllm:abkt_{name}", documentation=f"ABKT: {name}", buckets=buckets, labelnames=labelnames)
            for name, buckets in BUCKETS.items()
        }
        self._counters = {
            name: self._counter_cls(name=f"vllm:abkt_{name}", documentation=f"ABKT: {name}", labelnames=labelnames) for name in stats.COUNTS
        }
        self._by_peer = {
            name: self._counter_cls(name=f"vllm:abkt_{name}", documentation=f"ABKT: {name}", labelnames=[*labelnames, "peer"])
            for name in BY_PEER
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels, data = self.per_engine_labelvalues[engine_idx], transfer_stats_data
        for name, histogram in self._histograms.items():
            for value in data[name]:
                histogram.labels(*labels).observe(value)
        for name, counter in self._counters.items():
            if data[name]:
                counter.labels(*labels).inc(data[name])
        for name, counter in self._by_peer.items():
            for value, peer in zip(data[name], data["sent_peer" if name == "sent_bytes" else "received_peer"]):
                counter.labels(*labels, peer).inc(value)
