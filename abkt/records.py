"""What both worlds write: one record a request, one a transfer, one summary. The one place where metrics are defined.

Stages overlap, so they do not add: `_busy_s` is how long a stage worked, `_exposed_s` how long the request waited for it alone.
The exposed parts sum to E2E. Times are seconds on the run's clock (CLOCK_MONOTONIC less the run's start; simulated time in the
model). TTFT is `decode_token_s - arrival_s`: the decode side has produced a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

SCHEMA_VERSION = 2
STAGES = ("queue", "prefill", "encode", "wire", "expand", "decode")
OUTCOMES = ("completed", "rejected", "failed")


@dataclass(slots=True)
class RequestRecord:
    """One request. isl, osl: prompt and output tokens. rate: mean bits per KV value on the wire; distortion: see TransferRecord.

    queue: from arrival to the start of prefill. wire: from the end of encoding to the last promised byte, waiting for the link
    included. expand: from there to usable KV, waiting for memory and for an iteration boundary included. decode: to the last token.
    """

    request_id: int
    isl: int
    osl: int
    arrival_s: float
    queue_busy_s: float = 0.0
    queue_exposed_s: float = 0.0
    prefill_busy_s: float = 0.0
    prefill_exposed_s: float = 0.0
    encode_busy_s: float = 0.0
    encode_exposed_s: float = 0.0
    wire_busy_s: float = 0.0
    wire_exposed_s: float = 0.0
    expand_busy_s: float = 0.0
    expand_exposed_s: float = 0.0
    decode_busy_s: float = 0.0
    decode_exposed_s: float = 0.0
    prefill_token_s: float = math.nan
    decode_token_s: float = math.nan
    finish_s: float = math.nan
    prefill_node: str = ""
    decode_node: str = ""
    compute: str = "model"  # real | paced | model
    rate: float = math.nan
    wire_bytes: int = 0
    raw_bytes: int = 0
    distortion_start: float = 0.0
    distortion_final: float = 0.0
    distortion_token_weighted: float = 0.0
    cached_tokens: int = 0  # of the prompt, that the node of its prefill held already
    preemptions: int = 0  # how often it gave its memory back and began again
    retries: int = 0  # how often it was placed anew after a node was lost; the stages are those of the last time
    cost_usd: float = 0.0
    extrapolated: bool = False
    outcome: str = "completed"
    reason: str = ""

    @property
    def ttft_s(self) -> float:
        return self.decode_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first one on the decode side; nan where there is only one."""
        return (self.finish_s - self.decode_token_s) / (self.osl - 2) if self.osl > 2 else math.nan

    @property
    def e2e_s(self) -> float:
        return self.finish_s - self.arrival_s

    @property
    def transfer_exposed_s(self) -> float:
        return self.encode_exposed_s + self.wire_exposed_s + self.expand_exposed_s

    def begin_again(self) -> None:
        """It was lost, and begins anew: nothing is left but what it is, what it has cost, and that it was tried."""
        cost_usd, retries = self.cost_usd, self.retries
        self.__init__(self.request_id, self.isl, self.osl, self.arrival_s, compute=self.compute)  # type: ignore[misc]
        self.cost_usd, self.retries = cost_usd, retries + 1

    def expose(
        self, prefill_start_s: float, encode_start_s: float, wire_start_s: float, expand_start_s: float, decode_start_s: float
    ) -> None:
        """Fill every exposed time from the moments at which one stage ends and the next begins; finish_s must be set."""
        self.queue_exposed_s = prefill_start_s - self.arrival_s
        self.prefill_exposed_s = encode_start_s - prefill_start_s
        self.encode_exposed_s = wire_start_s - encode_start_s
        self.wire_exposed_s = expand_start_s - wire_start_s
        self.expand_exposed_s = decode_start_s - expand_start_s
        self.decode_exposed_s = self.finish_s - decode_start_s


@dataclass(slots=True)
class TransferRecord:
    """One KV transfer, from the moment the decode side had reserved memory for it.

    estimate: the policy's link estimate at the start, bytes/s (nan where it has none). mode: raw | lossless | stream. price: of the
    dearer end at the start, distortion per byte. Distortion is relative squared error on mean-removed channels, weighted: 0 is exact, 1
    is the mean alone. finish_s: the cut that was promised is there, decoding may begin. refine_bytes, refine_finish_s: of what followed
    behind the start (in wire_bytes too); 0 and nan where nothing did.
    """

    request_id: int
    source: str
    destination: str
    start_s: float
    finish_s: float = math.nan
    mode: str = "raw"
    order: str = ""
    depth_bits: int = 0
    cut: int = 0
    slope: float = math.nan
    price: float = 0.0
    estimate_bytes_per_s: float = math.nan
    calls: int = 0
    wire_bytes: int = 0
    raw_bytes: int = 0
    bits_per_value: float = math.nan
    retries: int = 0
    resumes: int = 0
    distortion_start: float = 0.0
    distortion_final: float = 0.0
    refine_bytes: int = 0
    refine_finish_s: float = math.nan
    pacing: str = ""  # who held the bytes back: model | tbf | socket | userspace | none
    outcome: str = "completed"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SLO:
    """A request is good if it completed with both held (a request with no second decoded token has no TPOT to hold)."""

    ttft_s: float
    tpot_s: float


DERIVED = ("ttft_s", "tpot_s", "e2e_s", "transfer_exposed_s")
SUMMARIZED = (
    *("outcome", "arrival_s", "finish_s", "wire_bytes", "raw_bytes", "cost_usd", "distortion_token_weighted", "extrapolated"),
    *DERIVED,
    *(f"{stage}_exposed_s" for stage in STAGES),
)


def columns(records: Sequence[RequestRecord] | Sequence[TransferRecord]) -> dict[str, list[object]]:
    """Records as columns, derived times included for requests; the schema of the Parquet files."""
    if not records:
        return {}
    names = [f.name for f in fields(records[0])]
    if isinstance(records[0], RequestRecord):
        names += DERIVED
    return {name: [getattr(record, name) for record in records] for name in names}


def summarize(records: Sequence[RequestRecord], slo: SLO, wall_s: float) -> dict[str, object]:
    """The summary of a run. Throughput and goodput count from the first arrival to the last finish; wall_s is what the run took."""
    found = {name: np.array([getattr(r, name) for r in records], dtype=str if name == "outcome" else None) for name in SUMMARIZED}
    return summarize_columns(found, slo, wall_s)


def summarize_columns(columns: Mapping[str, np.ndarray], slo: SLO, wall_s: float) -> dict[str, object]:
    """The same of records that lie in columns, of which it needs SUMMARIZED."""
    outcome = columns["outcome"]
    done = outcome == OUTCOMES[0]
    of = {name: values[done] for name, values in columns.items()}
    count, total = int(done.sum()), len(outcome)
    good = int(((of["ttft_s"] <= slo.ttft_s) & ~(of["tpot_s"] > slo.tpot_s)).sum())
    span_s = float(of["finish_s"].max() - columns["arrival_s"].min()) if count else math.nan
    distortion = of["distortion_token_weighted"]
    return {
        "schema_version": SCHEMA_VERSION,
        "requests": {"initiated": total, **{o: int((outcome == o).sum()) for o in OUTCOMES}},
        **{name: spread(of[name]) for name in ("ttft_s", "tpot_s", "e2e_s", "transfer_exposed_s")},
        "stages_exposed_s": {s: spread(of[f"{s}_exposed_s"]) for s in STAGES},
        "throughput_per_s": count / span_s if span_s > 0 else 0.0,
        "goodput_per_s": good / span_s if span_s > 0 else 0.0,
        "good_share": good / total if total else 0.0,
        "wire_bytes": int(of["wire_bytes"].sum()),
        "raw_bytes": int(of["raw_bytes"].sum()),
        "cost_usd": float(of["cost_usd"].sum()),
        "distortion": {"mean": float(distortion.mean()), "p99": float(np.quantile(distortion, 0.99))} if count else {},
        "extrapolated_share": float(of["extrapolated"].mean()) if count else 0.0,
        "wall_s": wall_s,
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """mean, p50, p90, p99 of the finite values; nan where there are none."""
    found = values if isinstance(values, np.ndarray) else np.array(list(values), dtype=float)
    finite = found[~np.isnan(found)]
    if not len(finite):
        return dict.fromkeys(("mean", "p50", "p90", "p99"), math.nan)
    p50, p90, p99 = np.quantile(finite, (0.5, 0.9, 0.99))
    return {"mean": float(finite.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99)}
